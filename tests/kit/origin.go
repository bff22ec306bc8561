// The application of `kit.origins` in Go, in TLS of its own. Its argument is what that in Node.js has.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type host struct {
	Address, Name, Least, Most string
	Wants                      bool
	Cert, Key, Clients, Staple string
	Idle                       time.Duration
}

type settings struct {
	Log   string
	Hosts []host
}

type requests struct{}

var (
	text    = []byte(strings.Repeat("some text that is worth compressing\n", 2000))
	data    = bytes.Repeat([]byte("0123456789abcdef\n"), (20<<20)/17+1)[:20<<20]
	waiting sync.Map
	dropped sync.Map
	writing sync.Mutex
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func released(name string) chan bool {
	made, _ := waiting.LoadOrStore(name, make(chan bool, 1))
	return made.(chan bool)
}

var routes = map[string]http.HandlerFunc{
	"who": func(w http.ResponseWriter, r *http.Request) {
		fields := []string{}
		for name, values := range r.Header {
			for _, value := range values {
				fields = append(fields, name, value)
			}
		}
		check(json.NewEncoder(w).Encode(map[string]any{"method": r.Method, "url": r.RequestURI, "fields": fields}))
	},
	"upload": func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		length, err := io.Copy(hash, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, `{"length": %d, "sha256": "%x"}`, length, hash.Sum(nil))
	},
	"data": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"kit"`)
		http.ServeContent(w, r, "data.txt", time.Unix(1e9, 0), bytes.NewReader(data))
	},
	"text": func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			compressed(w)
			return
		}
		w.Write(text)
	},
	"gzipped": func(w http.ResponseWriter, _ *http.Request) { compressed(w) },
	"trailers": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Checksum")
		for _, each := range []string{"one ", "two ", "three\n"} {
			io.WriteString(w, each)
			w.(http.Flusher).Flush()
		}
		w.Header().Set("X-Checksum", "12")
	},
	"events": func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: first\n\n")
		w.(http.Flusher).Flush()
		<-released(r.URL.RawQuery)
		io.WriteString(w, "data: second\n\n")
	},
	"go-on": func(w http.ResponseWriter, r *http.Request) {
		released(r.URL.RawQuery) <- true
		io.WriteString(w, "gone on\n")
	},
	"none": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
	"refuse": func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge)
	},
	"close": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		io.WriteString(w, "closed\n")
	},
	"long": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Long", strings.Repeat("l", 16000))
		io.WriteString(w, "long\n")
	},
	// As a server whose idle connection has just run out: one that was used before ends without an answer.
	"drop": func(w http.ResponseWriter, r *http.Request) {
		if _, again := dropped.Load(r.URL.RawQuery); !again && *of(r) > 1 {
			dropped.Store(r.URL.RawQuery, true)
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "kept\n")
	},
}

func compressed(w http.ResponseWriter) {
	w.Header().Set("Content-Encoding", "gzip")
	into := gzip.NewWriter(w)
	into.Write(text)
	check(into.Close())
}

func of(r *http.Request) *int32 { return r.Context().Value(requests{}).(*int32) }

// What is served, by the path that ServeMux has decoded and cleaned.
func application() http.Handler {
	mux := http.NewServeMux()
	for _, area := range []string{"v1", "scoped", "admin", ""} {
		area := area
		answer := func(w http.ResponseWriter, r *http.Request) {
			if area == "" {
				w.Header().Set("X-Area", "other")
				http.NotFound(w, r)
				return
			}
			w.Header().Set("X-Area", area)
			if route := routes[strings.TrimPrefix(r.URL.Path, "/v1/app/")]; route != nil {
				route(w, r)
				return
			}
			io.WriteString(w, "here\n")
		}
		mux.HandleFunc(strings.ReplaceAll("/"+area+"/", "//", "/"), answer)
		if area != "" {
			mux.HandleFunc("/"+area, answer)
		}
	}
	return mux
}

func noted(name string, log *os.File, inner http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		resumed, who := ".", "-"
		if r.TLS.DidResume {
			resumed = "r"
		}
		if len(r.TLS.PeerCertificates) > 0 {
			who = r.TLS.PeerCertificates[0].Subject.String()
		}
		version := map[uint16]string{tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3"}[r.TLS.Version]
		shown := r.Header.Get("Authorization")
		if shown == "" {
			shown = "-"
		}
		nth := atomic.AddInt32(of(r), 1)
		writing.Lock()
		fmt.Fprintf(log, "%s\t%s %s %s\t%s\t%s\t%s\t%d\t%s\t%s\n",
			name, r.Method, r.RequestURI, r.Proto, shown, version, resumed, nth, who, r.UserAgent())
		writing.Unlock()
		inner.ServeHTTP(w, r)
	}
}

func serve(each host, log *os.File) *http.Server {
	pair, err := tls.LoadX509KeyPair(each.Cert, each.Key)
	check(err)
	pair.OCSPStaple, err = os.ReadFile(each.Staple)
	check(err)
	versions := map[string]uint16{"TLSv1.2": tls.VersionTLS12, "TLSv1.3": tls.VersionTLS13}
	config := &tls.Config{MinVersion: versions[each.Least], MaxVersion: versions[each.Most]}
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName == "" {
			return nil, errors.New("no server name")
		}
		return &pair, nil
	}
	if each.Wants {
		pem, err := os.ReadFile(each.Clients)
		check(err)
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		config.ClientCAs.AppendCertsFromPEM(pem)
	}
	counted := func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, requests{}, new(int32))
	}
	return &http.Server{
		Addr: each.Address + ":443", Handler: noted(each.Name, log, application()), TLSConfig: config, ConnContext: counted,
		IdleTimeout: each.Idle * time.Millisecond,
	}
}

func main() {
	raw, err := os.ReadFile(os.Args[1])
	check(err)
	var given settings
	check(json.Unmarshal(raw, &given))
	log, err := os.OpenFile(given.Log, os.O_APPEND|os.O_WRONLY, 0)
	check(err)
	for _, each := range given.Hosts {
		server := serve(each, log)
		go func() { check(server.ListenAndServeTLS("", "")) }()
	}
	select {}
}
