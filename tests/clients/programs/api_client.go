// Go's net/http: the arguments are the address of a service, a name, and fields to send, as "Name: value".
//
// Prints a line for each response; the last is one that the service holds back by that name.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

func ask(client *http.Client, method, url string, body io.Reader, fields ...string) {
	request, err := http.NewRequest(method, url, body)
	fatal(err)
	request.Header.Set("X-Client", os.Args[2])
	for _, line := range append(os.Args[3:], fields...) {
		name, value, _ := strings.Cut(line, ": ")
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	fatal(err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	fatal(err)
	fmt.Println(strings.TrimSpace(string(text)))
}

func fatal(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ExpectContinueTimeout = 60 * time.Second
	client := &http.Client{Transport: transport, Timeout: 400 * time.Second}
	base := os.Args[1]
	body := bytes.Repeat([]byte("from Go "), 250000)
	ask(client, "GET", base+"/who", nil)
	ask(client, "POST", base+"/upload", io.MultiReader(bytes.NewReader(body)), "Expect: 100-continue")
	ask(client, "GET", base+"/who", nil, "X-Hold: "+os.Args[2])
}
