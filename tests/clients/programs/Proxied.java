// Java's two own clients behind a proxy that wants credentials, which they send when asked.
// Arguments: "http-client" or "url-connection", the URL, and host, port, user and password of the proxy or nothing.
import java.io.IOException;
import java.net.Authenticator;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.PasswordAuthentication;
import java.net.Proxy;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

class Proxied {
    static final int TIMEOUT_S = 90;

    public static void main(String[] arguments) throws Exception {
        var told = arguments.length > 2;
        var proxy = told ? new InetSocketAddress(arguments[2], Integer.parseInt(arguments[3])) : null;
        var login = told ? new Login(arguments[4], arguments[5]) : null;
        var url = URI.create(arguments[1]);
        System.out.print(arguments[0].equals("http-client") ? byHttpClient(url, proxy, login) : byUrlConnection(url, proxy, login));
    }

    static String byHttpClient(URI url, InetSocketAddress proxy, Login login) throws Exception {
        var client = HttpClient.newBuilder();
        if (proxy != null) client.proxy(ProxySelector.of(proxy)).authenticator(login);
        var request = HttpRequest.newBuilder(url).timeout(Duration.ofSeconds(TIMEOUT_S)).build();
        var response = client.build().send(request, HttpResponse.BodyHandlers.ofString());
        if (response.statusCode() != 200) throw new IOException(response.toString());
        return response.body();
    }

    static String byUrlConnection(URI url, InetSocketAddress proxy, Login login) throws Exception {
        if (login != null) Authenticator.setDefault(login);
        var by = proxy == null ? Proxy.NO_PROXY : new Proxy(Proxy.Type.HTTP, proxy);
        var connection = (HttpURLConnection) url.toURL().openConnection(by);
        connection.setConnectTimeout(TIMEOUT_S * 1000);
        connection.setReadTimeout(TIMEOUT_S * 1000);
        if (connection.getResponseCode() != 200) throw new IOException("status " + connection.getResponseCode());
        try (var body = connection.getInputStream()) {
            return new String(body.readAllBytes());
        }
    }

    static class Login extends Authenticator {
        final PasswordAuthentication login;

        Login(String user, String password) {
            login = new PasswordAuthentication(user, password.toCharArray());
        }

        protected PasswordAuthentication getPasswordAuthentication() {
            return getRequestorType() == RequestorType.PROXY ? login : null;
        }
    }
}
