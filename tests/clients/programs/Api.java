// java.net.http.HttpClient: the arguments are the address of a service, a name, and fields to send, as "Name: value".
//
// Prints a line for each response; the last is one that the service holds back by that name.
import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.time.Duration;
import java.util.Arrays;

class Api {
    static String[] arguments;
    static final HttpClient client = HttpClient.newHttpClient();

    static HttpRequest.Builder request(String path) {
        var made = HttpRequest.newBuilder(URI.create(arguments[0] + path)).timeout(Duration.ofSeconds(400));
        made.header("X-Client", arguments[1]);
        for (var line : Arrays.copyOfRange(arguments, 2, arguments.length)) {
            var parts = line.split(": ", 2);
            made.header(parts[0], parts[1]);
        }
        return made;
    }

    static void print(HttpRequest.Builder asked) throws Exception {
        System.out.println(client.send(asked.build(), BodyHandlers.ofString()).body().strip());
    }

    public static void main(String[] given) throws Exception {
        arguments = given;
        var body = "from Java ".repeat(200000).getBytes();
        // Of a stream nobody knows the length.
        var stream = BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(body));
        print(request("/who"));
        print(request("/upload").POST(stream).expectContinue(true));
        print(request("/who").header("X-Hold", arguments[1]));
    }
}
