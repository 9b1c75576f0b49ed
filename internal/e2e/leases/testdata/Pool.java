import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.atomic.AtomicLong;

/** Uses a database by HikariCP until the end of its input: Pool URL WORKERS PAUSE-MS. */
public class Pool {
    private static volatile boolean ended;

    public static void main(String[] args) throws Exception {
        int workers = Integer.parseInt(args[1]);
        int pause = Integer.parseInt(args[2]);
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(args[0]);
        config.setMaximumPoolSize(workers);
        config.setConnectionTimeout(60_000);
        config.setValidationTimeout(30_000);
        AtomicLong statements = new AtomicLong();
        AtomicLong failed = new AtomicLong();
        try (HikariDataSource pool = new HikariDataSource(config)) {
            List<Thread> all = new ArrayList<>();
            for (int i = 0; i < workers; i++) {
                Thread worker = new Thread(() -> {
                    Random random = new Random();
                    while (!ended) {
                        try (var connection = pool.getConnection();
                                var statement = connection.prepareStatement("SELECT count(*) FROM orders WHERE id > ?")) {
                            statement.setInt(1, 0);
                            try (var rows = statement.executeQuery()) {
                                rows.next();
                                if (rows.getInt(1) != 100) {
                                    throw new IllegalStateException("rows " + rows.getInt(1));
                                }
                            }
                        } catch (Exception e) {
                            failed.incrementAndGet();
                            System.out.println("HikariCP failed: " + e);
                        }
                        statements.incrementAndGet();
                        try {
                            Thread.sleep(random.nextInt(pause));
                        } catch (InterruptedException e) {
                            return;
                        }
                    }
                });
                worker.start();
                all.add(worker);
            }
            while (System.in.read() >= 0) {
                continue;
            }
            ended = true;
            for (Thread worker : all) {
                worker.join();
            }
        }
        System.out.println("HikariCP made " + statements + " statements, " + failed + " failed");
    }
}
