// Apache HttpClient 4 behind a proxy that wants credentials, which it sends when asked.
// Arguments: the URL, and host, port, user and password of the proxy or nothing.
import java.io.IOException;
import org.apache.http.HttpHost;
import org.apache.http.auth.AuthScope;
import org.apache.http.auth.UsernamePasswordCredentials;
import org.apache.http.client.methods.HttpGet;
import org.apache.http.impl.client.BasicCredentialsProvider;
import org.apache.http.impl.client.HttpClients;
import org.apache.http.util.EntityUtils;

class Apache {
    public static void main(String[] arguments) throws Exception {
        var client = HttpClients.custom().useSystemProperties();
        if (arguments.length > 1) {
            var proxy = new HttpHost(arguments[1], Integer.parseInt(arguments[2]));
            var logins = new BasicCredentialsProvider();
            logins.setCredentials(new AuthScope(proxy), new UsernamePasswordCredentials(arguments[3], arguments[4]));
            client.setProxy(proxy).setDefaultCredentialsProvider(logins);
        }
        try (var built = client.build(); var response = built.execute(new HttpGet(arguments[0]))) {
            if (response.getStatusLine().getStatusCode() != 200) throw new IOException(response.getStatusLine().toString());
            System.out.print(EntityUtils.toString(response.getEntity()));
        }
    }
}
