import java.io.*;
import java.lang.management.ManagementFactory;
import java.net.*;
import java.net.http.*;
import java.nio.ByteBuffer;
import java.nio.channels.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;

/** Does what Java plugins do, and prints "ok NAME" or "broken NAME: WHY" for each. */
public class Probe {
  interface Check {
    Object run() throws Exception;
  }

  static void check(String name, boolean show, Check check) {
    var executor = Executors.newSingleThreadExecutor(r -> { var t = new Thread(r); t.setDaemon(true); return t; });
    try {
      Object value = executor.submit(check::run).get(25, TimeUnit.SECONDS);
      System.out.println("ok " + name + (show && value != null ? ": " + value : ""));
    } catch (Exception e) {
      System.out.println(("broken " + name + ": " + (e.getCause() == null ? e : e.getCause())).replace('\n', ' '));
    }
  }

  static Object unix() throws Exception {
    Path path = Files.createTempDirectory("j").resolve("s");
    var address = UnixDomainSocketAddress.of(path);
    try (var server = ServerSocketChannel.open(StandardProtocolFamily.UNIX)) {
      server.bind(address);
      try (var client = SocketChannel.open(address); var taken = server.accept()) {
        client.write(ByteBuffer.wrap("x".getBytes()));
        var got = ByteBuffer.allocate(1);
        taken.read(got);
        return new String(got.array());
      }
    } finally {
      Files.deleteIfExists(path);
    }
  }

  static Object home() throws Exception {
    Path home = Path.of(System.getProperty("user.home"));
    if (!home.toString().equals(System.getenv("HOME"))) throw new IOException("user.home is " + home);
    Files.delete(Files.writeString(home.resolve("e2e-probe"), "x"));
    return null;
  }

  static Object user() throws Exception {
    String name = System.getProperty("user.name");
    if (!name.equals(System.getenv("USER"))) throw new IOException("user.name is " + name);
    return null;
  }

  static Object temporary() throws Exception {
    Path file = Files.createTempFile("j", "x");
    if (!file.startsWith(System.getProperty("java.io.tmpdir"))) throw new IOException("it is " + file);
    Files.delete(file);
    return System.getProperty("java.io.tmpdir");
  }

  static Object options() throws Exception {
    long heap = Runtime.getRuntime().maxMemory() >> 20;
    return System.getProperty("e2e.kept") + " " + (heap <= 128 ? "small heap" : heap + " MiB");
  }

  static Object process() throws Exception {
    var p = new ProcessBuilder("sh", "-c", "tr a-z A-Z").start();
    try (var in = p.getOutputStream()) { in.write("piped".getBytes()); }
    return new String(p.getInputStream().readAllBytes()) + p.waitFor();
  }

  static Object threads() throws Exception {
    var pool = Executors.newFixedThreadPool(200);
    var results = new ArrayList<Future<Integer>>();
    for (int i = 0; i < 500; i++) { int n = i; results.add(pool.submit(() -> n)); }
    int sum = 0;
    for (var r : results) sum += r.get();
    pool.shutdown();
    return sum;
  }

  static Object loopback() throws Exception {
    try (var server = new ServerSocket(0, 5, InetAddress.getLoopbackAddress());
        var client = new Socket("localhost", server.getLocalPort()); var taken = server.accept()) {
      client.getOutputStream().write('x');
      return (char) taken.getInputStream().read();
    }
  }

  static HttpResponse<String> get(HttpClient client, String url) throws Exception {
    return client.send(HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(20)).build(), HttpResponse.BodyHandlers.ofString());
  }

  static Object hello(String got) throws IOException {
    if (!got.equals("hello GET\n")) throw new IOException("it answered " + got);
    return null;
  }

  public static void main(String[] args) {
    check("unix domain socket", true, Probe::unix);
    check("user.home", true, Probe::home);
    check("user.name", true, Probe::user);
    check("java.io.tmpdir", true, Probe::temporary);
    check("JAVA_TOOL_OPTIONS", true, Probe::options);
    check("process", true, Probe::process);
    check("threads", true, Probe::threads);
    check("loopback", true, Probe::loopback);
    check("management", true, () -> ManagementFactory.getRuntimeMXBean().getPid() == ProcessHandle.current().pid());
    if (!List.of(args).contains("network")) System.exit(0);
    String url = System.getenv("E2E_HTTPS");
    check("HttpClient", false, () -> hello(get(HttpClient.newHttpClient(), url).body()));
    check("HttpClient http", false, () -> hello(get(HttpClient.newHttpClient(), System.getenv("E2E_HTTP")).body()));
    check("HttpClient with ProxySelector", false, () -> hello(get(HttpClient.newBuilder().proxy(ProxySelector.getDefault()).build(), url).body()));
    check("HttpURLConnection", false, () -> {
      try (var in = URI.create(url).toURL().openStream()) { return hello(new String(in.readAllBytes(), StandardCharsets.UTF_8)); }
    });
    check("refused", false, () -> {
      int status = get(HttpClient.newHttpClient(), System.getenv("E2E_REFUSED")).statusCode();
      if (status != 403) throw new IOException("status " + status);
      return null;
    });
    check("unknown name", false, () -> {
      try { InetAddress.getByName("no-such-name.test.example"); } catch (UnknownHostException e) { return null; }
      throw new IOException("it was resolved");
    });
    System.exit(0);
  }
}
