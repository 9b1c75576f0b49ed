import java.io.InputStream;
import java.net.HttpURLConnection;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.Locale;
import java.util.Map;

/** Client LIBRARY URL [METHOD [SIZE]] makes one request and prints what it saw as one JSON object. */
class Client {
    static final Map<String, String> seen = new LinkedHashMap<>();
    static final long begun = System.nanoTime();

    static void now(String name) {
        seen.putIfAbsent(name + " seconds", String.format(Locale.ROOT, "%.3f", (System.nanoTime() - begun) / 1e9));
    }

    public static void main(String[] args) throws Exception {
        String method = args.length > 2 ? args[2] : "GET";
        byte[] body = "0123456789abcdef".repeat((args.length > 3 ? Integer.parseInt(args[3]) : 0) / 16).getBytes();
        try {
            switch (args[0]) {
                case "HttpClient" -> client(HttpClient.Version.HTTP_1_1, args[1], method, body);
                case "HttpClient-h2" -> client(HttpClient.Version.HTTP_2, args[1], method, body);
                default -> connection(args[1], method, body);
            }
        } catch (Exception e) {
            seen.put("error", classify(e));
        }
        now("total");
        StringBuilder out = new StringBuilder("{");
        seen.forEach((name, value) -> out.append(out.length() > 1 ? "," : "").append(quote(name)).append(":").append(quote(value)));
        System.out.println(out + "}");
        System.exit(0);
    }

    static void client(HttpClient.Version version, String url, String method, byte[] body) throws Exception {
        HttpClient client = HttpClient.newBuilder().version(version).proxy(ProxySelector.getDefault()).connectTimeout(Duration.ofSeconds(20)).build();
        HttpRequest request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(20))
            .method(method, body.length > 0 ? HttpRequest.BodyPublishers.ofByteArray(body) : HttpRequest.BodyPublishers.noBody()).build();
        HttpResponse<InputStream> answer = client.send(request, HttpResponse.BodyHandlers.ofInputStream());
        now("head");
        seen.put("status", "" + answer.statusCode());
        seen.put("_version", "" + answer.version());
        answer.headers().map().forEach((name, values) -> { if (!name.startsWith(":")) seen.put("header " + name.toLowerCase(Locale.ROOT), String.join(" | ", values)); });
        read(answer.body());
    }

    static void connection(String url, String method, byte[] body) throws Exception {
        HttpURLConnection conn = (HttpURLConnection) URI.create(url).toURL().openConnection();
        conn.setRequestMethod(method);
        conn.setReadTimeout(20_000);
        if (body.length > 0) {
            conn.setDoOutput(true);
            conn.setFixedLengthStreamingMode(body.length);
            conn.getOutputStream().write(body);
        }
        seen.put("status", "" + conn.getResponseCode());
        now("head");
        conn.getHeaderFields().forEach((name, values) -> { if (name != null) seen.put("header " + name.toLowerCase(Locale.ROOT), String.join(" | ", values)); });
        InputStream in = conn.getResponseCode() < 400 ? conn.getInputStream() : conn.getErrorStream();
        if (in != null) read(in);
    }

    static void read(InputStream in) throws Exception {
        MessageDigest sum = MessageDigest.getInstance("SHA-256");
        byte[] buffer = new byte[65536];
        long size = 0;
        try {
            for (int n; (n = in.read(buffer)) >= 0; size += n) {
                now("first");
                sum.update(buffer, 0, n);
            }
        } finally {
            seen.put("body", size + " bytes " + HexFormat.of().formatHex(sum.digest(), 0, 8));
        }
    }

    static String classify(Throwable e) {
        StringBuilder text = new StringBuilder();
        for (; e != null; e = e.getCause()) text.append(e).append("; ");
        seen.put("_error", text.toString());
        String all = text.toString();
        if (all.contains("PKIX") || all.contains("SSLHandshake")) return "tls";
        if (all.contains("Timeout") || all.contains("timed out")) return "timeout";
        if (all.contains("GOAWAY")) return "goaway";
        if (all.contains("Received RST_STREAM")) return "stream " + all.replaceAll("(?s).*Received RST_STREAM: ([^;]*);.*", "$1");
        if (all.contains("reset") || all.contains("Broken pipe")) return "reset";
        if (all.contains("EOF") || all.contains("Unexpected end of file") || all.contains("no bytes") || all.contains("Premature") || all.contains("closed")) return "eof";
        return all;
    }

    static String quote(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') out.append('\\').append(c);
            else if (c < ' ' || c > '~') out.append(String.format("\\u%04x", (int) c));
            else out.append(c);
        }
        return out + "\"";
    }
}
