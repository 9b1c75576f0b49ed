import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.postgresql.PGConnection;
import org.postgresql.util.PSQLException;
import redis.clients.jedis.DefaultJedisClientConfig;
import redis.clients.jedis.HostAndPort;
import redis.clients.jedis.Jedis;
import redis.clients.jedis.JedisPubSub;
import redis.clients.jedis.Pipeline;
import redis.clients.jedis.RedisClient;
import redis.clients.jedis.Response;
import redis.clients.jedis.exceptions.JedisDataException;

/** Prints a line "STEP: RESULT" for each step of one client. A line that begins with
 * "refused" is of a statement that is not granted. All others must be the same directly
 * and through the sidecar. */
public class Clients {
    static final String FIRST = "SELECT id, customer, amount FROM orders ORDER BY id LIMIT 3";
    static final String SECRETS = "SELECT value FROM secrets";
    static final String COUNT = "SELECT count(*) FROM orders";

    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "jdbc" -> jdbc();
            case "hikari" -> hikari();
            case "jedis" -> jedis();
            default -> throw new IllegalArgumentException(args[0]);
        }
    }

    static void say(String step, Object... result) {
        StringBuilder line = new StringBuilder(step).append(":");
        for (Object part : result) line.append(' ').append(part);
        System.out.println(line);
    }

    static String oneLine(Object text) { return String.valueOf(text).replaceAll("\\s+", " "); }

    static String url() {
        return "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
    }

    static Properties login() {
        Properties p = new Properties();
        p.setProperty("user", System.getenv("PGUSER"));
        p.setProperty("password", System.getenv("PGPASSWORD"));
        return p;
    }

    static long count(Connection c) throws SQLException {
        try (Statement s = c.createStatement(); ResultSet r = s.executeQuery(COUNT)) {
            r.next();
            return r.getLong(1);
        }
    }

    static SQLException fails(Connection c, String text) {
        try (Statement s = c.createStatement()) {
            s.execute(text);
            return new SQLException("it did not fail", "00000");
        } catch (SQLException e) {
            return e;
        }
    }

    static void jdbc() throws Exception {
        String me = "jdbc";
        try (Connection c = DriverManager.getConnection(url(), login())) {
            try (Statement s = c.createStatement(); ResultSet r = s.executeQuery(FIRST)) {
                while (r.next()) say("select", r.getInt(1), r.getString(2), r.getBigDecimal(3));
            }
            try (PreparedStatement p = c.prepareStatement("SELECT amount FROM orders WHERE id = ?")) {
                for (int n = 1; n < 12; n++) { // named on the server from the fifth on
                    p.setInt(1, n);
                    try (ResultSet r = p.executeQuery()) {
                        r.next();
                        say("prepared", r.getBigDecimal(1));
                    }
                }
            }
            try (PreparedStatement p = c.prepareStatement("DELETE FROM notes WHERE client = ?")) {
                p.setString(1, me);
                p.executeUpdate();
            }
            c.setAutoCommit(false);
            try (PreparedStatement p = c.prepareStatement("INSERT INTO notes VALUES (?, ?, ?)")) {
                for (int round = 0; round < 2; round++) {
                    for (int n = 0; n < 300; n++) {
                        p.setString(1, me);
                        p.setInt(2, n);
                        p.setString(3, "body " + n);
                        p.addBatch();
                    }
                    say("batch", p.executeBatch().length);
                    if (round == 0) c.rollback(); else c.commit();
                }
            }
            try (Statement s = c.createStatement()) {
                s.setFetchSize(7); // a portal
                int seen = 0;
                try (ResultSet r = s.executeQuery("SELECT id FROM orders")) {
                    while (r.next()) seen++;
                }
                say("cursor", seen);
            }
            c.commit();
            c.setAutoCommit(true);
            StringBuilder lines = new StringBuilder();
            for (int n = 1000; n < 2000; n++) lines.append(me + "\t" + n + "\tcopied\n");
            say("copy in", c.unwrap(PGConnection.class).getCopyAPI().copyIn("COPY notes FROM STDIN", new StringReader(lines.toString())));
            StringWriter out = new StringWriter();
            say("copy out", c.unwrap(PGConnection.class).getCopyAPI().copyOut("COPY orders TO STDOUT", out));
            say("division", fails(c, "SELECT 1/0").getSQLState());
            say("unique", fails(c, "INSERT INTO notes VALUES ('jdbc', 1, 'again')").getSQLState());
            SQLException e = fails(c, SECRETS);
            say("refused", e.getSQLState(), oneLine(e.getMessage()));
            try (PreparedStatement p = c.prepareStatement("SELECT value FROM secrets WHERE id = ?")) {
                for (int n = 0; n < 7; n++) {
                    p.setInt(1, n);
                    try {
                        p.executeQuery();
                    } catch (SQLException x) {
                        say("refused prepared", x.getSQLState(), oneLine(x.getMessage()));
                    }
                }
            }
            c.setAutoCommit(false);
            say("refused in a transaction", oneLine(fails(c, SECRETS).getMessage()));
            say("in the failed transaction", fails(c, COUNT).getSQLState());
            c.rollback();
            c.setAutoCommit(true);
            say("after", count(c));
            c.setReadOnly(true);
            c.setTransactionIsolation(Connection.TRANSACTION_REPEATABLE_READ);
            c.setAutoCommit(false);
            say("read only", count(c));
            c.commit();
            c.setAutoCommit(true);
            try (Statement s = c.createStatement()) {
                s.setQueryTimeout(1);
                try {
                    s.execute("SELECT pg_sleep(30)");
                } catch (SQLException x) {
                    say("cancel", x.getSQLState());
                }
            }
            metadata(c);
            say("valid", c.isValid(5));
        }
    }

    static void metadata(Connection c) throws SQLException {
        try (ResultSet r = c.getMetaData().getColumns(null, "public", "orders", null)) {
            while (r.next()) say("column", r.getString("COLUMN_NAME"), r.getString("TYPE_NAME"));
        }
        try (ResultSet r = c.getMetaData().getPrimaryKeys(null, "public", "orders")) {
            while (r.next()) say("key", r.getString("COLUMN_NAME"));
        }
        try (ResultSet r = c.getMetaData().getTables(null, "public", "%", new String[] {"TABLE"})) {
            while (r.next()) say("table", r.getString("TABLE_NAME"));
        }
    }

    static void hikari() throws Exception {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(url());
        config.setUsername(System.getenv("PGUSER"));
        config.setPassword(System.getenv("PGPASSWORD"));
        config.setMaximumPoolSize(5);
        try (HikariDataSource pool = new HikariDataSource(config)) {
            ExecutorService threads = Executors.newFixedThreadPool(10);
            List<Future<Long>> all = new ArrayList<>();
            for (int n = 0; n < 50; n++) {
                all.add(threads.submit(() -> {
                    try (Connection c = pool.getConnection()) {
                        return count(c);
                    }
                }));
            }
            long sum = 0;
            for (Future<Long> one : all) sum += one.get();
            say("pool", sum);
            threads.shutdown();
            try (Connection c = pool.getConnection()) {
                SQLException e = fails(c, SECRETS);
                say("refused", e.getSQLState(), oneLine(e.getMessage()));
                say("after", count(c));
            }
            Thread.sleep(600); // so that a connection is validated before it is used
            try (Connection c = pool.getConnection()) {
                c.setReadOnly(true); // which the pool takes back
                say("read only", count(c));
            }
            try (Connection c = pool.getConnection()) {
                say("again", c.isReadOnly(), count(c));
            }
        }
    }

    static void jedis() throws Exception {
        String me = "app:jedis";
        HostAndPort at = new HostAndPort(System.getenv("REDIS_HOST"), Integer.parseInt(System.getenv("REDIS_PORT")));
        DefaultJedisClientConfig config = DefaultJedisClientConfig.builder().user(System.getenv("REDIS_USER")).password(System.getenv("REDIS_PASSWORD")).build();
        try (RedisClient db = RedisClient.builder().hostAndPort(at).clientConfig(config).build()) {
            db.del(me, me + ":n", me + ":hash");
            say("set", db.set(me, "value"), db.get(me), db.get(me + ":none"));
            say("hash", db.hset(me + ":hash", Map.of("a", "1", "b", "2")), db.hgetAll(me + ":hash").size());
            try (var p = db.pipelined()) {
                List<Response<Long>> all = new ArrayList<>();
                for (int n = 0; n < 100; n++) all.add(p.incr(me + ":n"));
                p.sync();
                say("pipeline", all.get(99).get());
            }
            try (var t = db.multi()) {
                t.incr(me + ":n");
                t.get(me);
                say("transaction", t.exec());
            }
            try {
                db.get("other:1");
            } catch (JedisDataException e) {
                say("refused", oneLine(e.getMessage()));
            }
            say("after", db.get(me));
        }
        StringBuffer received = new StringBuffer();
        CountDownLatch subscribed = new CountDownLatch(1);
        JedisPubSub listener = new JedisPubSub() {
            @Override public void onSubscribe(String channel, int channels) { subscribed.countDown(); }
            @Override public void onMessage(String channel, String message) { received.append(channel).append(' ').append(message); unsubscribe(); }
        };
        Thread reader = new Thread(() -> { try (Jedis db = new Jedis(at, config)) { db.subscribe(listener, "app.news"); } });
        reader.start();
        say("subscribed", subscribed.await(20, TimeUnit.SECONDS));
        try (Jedis db = new Jedis(at, config)) {
            say("published", db.publish("app.news", "hello"));
        }
        reader.join(20000);
        say("message", received, !reader.isAlive());
    }
}
