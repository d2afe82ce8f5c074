import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URI;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ThreadLocalRandom;

/** As threads.py, with the HTTP server and client of the JDK. */
public class Chain {
    static final byte[] BODY = "it has been answered".getBytes();
    static final List<String> MODES = List.of("single", "fan", "sequence", "retry", "late", "stream");
    static final Map<String, List<String>> FAMILIES = Map.of(
        "none", List.of(),
        "traceparent", List.of("traceparent", "tracestate"),
        "b3", List.of("b3"),
        "b3multi", List.of("X-B3-TraceId", "X-B3-SpanId", "X-B3-ParentSpanId", "X-B3-Sampled"),
        "uber-trace-id", List.of("uber-trace-id"),
        "x-request-id", List.of("x-request-id"));

    final List<String> next = new ArrayList<>();
    final List<String> names;
    final String mode;
    final String name;
    final boolean child;
    final int cron;
    final OutputStream log;
    final HttpServer server;

    /** For what is done beside the request's own thread. */
    final ExecutorService others = Executors.newFixedThreadPool(20);

    Chain(String[] arguments) throws IOException {
        Map<String, String> options = new HashMap<>();
        for (int at = 0; at < arguments.length; at++) {
            switch (arguments[at]) {
                case "--child" -> options.put("--child", "");
                case "--next" -> next.add(arguments[++at]);
                case "--port", "--pass", "--log", "--mode", "--cron", "--name" ->
                    options.put(arguments[at], arguments[++at]);
                default -> throw new IllegalArgumentException(arguments[at]);
            }
        }
        String family = options.getOrDefault("--pass", "none");
        names = family.equals("all")
            ? FAMILIES.values().stream().flatMap(List::stream).toList()
            : FAMILIES.get(family);
        mode = options.getOrDefault("--mode", "single");
        if (names == null || !MODES.contains(mode)) {
            throw new IllegalArgumentException("no such mode or family of headers");
        }
        name = options.getOrDefault("--name", "");
        child = options.containsKey("--child");
        cron = Integer.parseInt(options.getOrDefault("--cron", "0"));
        log = new FileOutputStream(options.getOrDefault("--log", "/dev/null"), true);
        int port = Integer.parseInt(options.getOrDefault("--port", "0"));
        server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 1024);
        server.setExecutor(Executors.newFixedThreadPool(32));
        server.createContext("/", this::serve);
    }

    void told(String side, String path, int status) {
        try {
            log.write((side + " " + path + " " + status + "\n").getBytes()); // which is one write
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
    }

    Map<String, String> passed(HttpExchange exchange) {
        Map<String, String> headers = new LinkedHashMap<>();
        for (String name : names) {
            String value = exchange.getRequestHeaders().getFirst(name);
            if (value != null) headers.put(name, value);
        }
        return headers;
    }

    /** The status of the answer, 0 if there was none. */
    int get(String url, Map<String, String> headers) {
        try {
            HttpURLConnection connection = (HttpURLConnection) URI.create(url).toURL().openConnection();
            headers.forEach(connection::setRequestProperty);
            String parent = headers.get("traceparent");
            if (child && parent != null) {
                String[] fields = parent.split("-");
                fields[2] = String.format("%016x", ThreadLocalRandom.current().nextLong());
                connection.setRequestProperty("traceparent", String.join("-", fields));
            }
            int status = connection.getResponseCode();
            // Read to its end, so that the connection is kept.
            try (InputStream body = status < 400 ? connection.getInputStream() : connection.getErrorStream()) {
                if (body != null) body.readAllBytes();
            }
            return status;
        } catch (IOException error) {
            return 0;
        }
    }

    int call(String path, int number, Map<String, String> headers) {
        int status = get(next.get(number % next.size()) + path, headers);
        told("CLIENT", path, status);
        return status;
    }

    /** Makes the calls of a request; the status to answer it with. */
    int calls(String path, Map<String, String> headers) {
        if (next.isEmpty()) return 200;
        int[] statuses = switch (mode) {
            case "fan" -> fan(path, headers);
            case "sequence" -> new int[] {one(path, 0, headers), one(path, 1, headers), one(path, 2, headers)};
            case "retry" -> {
                int status = one(path, 0, headers);
                yield new int[] {status == 503 ? one(path, 1, headers) : status};
            }
            default -> new int[] {one(path, 0, headers)};
        };
        return Arrays.stream(statuses).allMatch(status -> status > 0 && status < 500) ? 200 : 502;
    }

    int one(String path, int number, Map<String, String> headers) {
        return call(path + "/" + number, number, headers);
    }

    int[] fan(String path, Map<String, String> headers) {
        List<Callable<Integer>> all = new ArrayList<>();
        for (int number = 0; number < 20; number++) {
            int index = number;
            all.add(() -> one(path, index, headers));
        }
        try {
            List<Future<Integer>> done = others.invokeAll(all);
            int[] statuses = new int[done.size()];
            for (int number = 0; number < statuses.length; number++) statuses[number] = done.get(number).get();
            return statuses;
        } catch (Exception error) {
            throw new IllegalStateException(error);
        }
    }

    boolean fails(String path) {
        boolean marked = Arrays.asList(path.split("/")).contains("fail-" + name);
        return marked && (!mode.equals("retry") || path.endsWith("/0"));
    }

    static void sleep(int duration) {
        try {
            Thread.sleep(duration);
        } catch (InterruptedException error) {
            throw new IllegalStateException(error);
        }
    }

    static void delay(String path) {
        String[] segments = path.split("/");
        if (segments.length >= 4 && segments[1].equals("slow")) sleep(Integer.parseInt(segments[2]));
    }

    void answer(HttpExchange exchange, String path, int status) throws IOException {
        told("SERVER", path, status);
        exchange.sendResponseHeaders(status, BODY.length);
        exchange.getResponseBody().write(BODY);
        exchange.close();
    }

    void stream(HttpExchange exchange, String path, Map<String, String> headers) throws IOException {
        exchange.sendResponseHeaders(200, 0);
        OutputStream body = exchange.getResponseBody();
        for (int number = 0; number < 5; number++) {
            body.write(BODY);
            body.flush();
            if (!next.isEmpty()) one(path, number, headers);
        }
        delay(path);
        told("SERVER", path, 200);
        exchange.close();
    }

    void serve(HttpExchange exchange) throws IOException {
        exchange.getRequestBody().readAllBytes();
        String path = exchange.getRequestURI().toString();
        Map<String, String> headers = passed(exchange);
        if (fails(path)) {
            answer(exchange, path, 503);
        } else if (mode.equals("stream")) {
            stream(exchange, path, headers);
        } else {
            boolean late = mode.equals("late");
            int status = late ? 200 : calls(path, headers);
            delay(path);
            answer(exchange, path, status);
            if (late && !next.isEmpty()) others.submit(() -> call(path + "/late", 0, headers));
        }
    }

    void callRegularly() {
        for (int number = 0; ; number++) {
            sleep(cron);
            call("/cron/" + name + "/" + number, 0, Map.of());
        }
    }

    public static void main(String[] arguments) throws IOException {
        System.setProperty("sun.net.httpserver.nodelay", "true");
        // Connections are kept as long as there is a process.
        System.setProperty("sun.net.httpserver.idleInterval", "3600");
        System.setProperty("sun.net.httpserver.maxIdleConnections", "10000");
        System.setProperty("http.maxConnections", "64");
        Chain chain = new Chain(arguments);
        // Otherwise SIGTERM would end with the status 143.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> Runtime.getRuntime().halt(0)));
        chain.server.start();
        System.out.println("listening on 127.0.0.1:" + chain.server.getAddress().getPort());
        if (chain.cron > 0 && !chain.next.isEmpty()) new Thread(chain::callRegularly).start();
    }
}
