package sql

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// Places are where a name may stand, as %: a keyword that is a name there must hide nothing
// of what is behind it.
var (
	queryPlaces = []string{
		"SELECT * FROM orders %, secret", "SELECT * FROM orders % (a, b), secret", "SELECT * FROM orders AS %, secret",
		"SELECT * FROM orders AS % (a, b), secret", "SELECT * FROM orders % JOIN secret ON true", "SELECT * FROM orders % (a, b) JOIN secret ON true",
		"SELECT * FROM orders AS % JOIN secret ON true", "SELECT * FROM orders AS % (a) CROSS JOIN secret", "SELECT * FROM f(1) %, secret",
		"SELECT * FROM f(1) AS % (a, b), secret", "SELECT * FROM f(1) AS % (a int), secret", "SELECT * FROM f(1) WITH ORDINALITY %, secret",
		"SELECT * FROM f(1) WITH ORDINALITY % (a, b), secret", "SELECT * FROM f(1) WITH ORDINALITY AS %, secret",
		"SELECT * FROM f(1) WITH ORDINALITY AS % (a, b), secret", "SELECT * FROM f(1) WITH ORDINALITY AS % (a, b) JOIN secret ON true",
		"SELECT * FROM (SELECT 1) %, secret", "SELECT * FROM (SELECT 1) AS % (a), secret", "SELECT * FROM (a JOIN b ON true) AS % (a), secret",
		"SELECT * FROM orders TABLESAMPLE system (1), secret %", "SELECT * FROM orders % TABLESAMPLE secret (1)",
		"SELECT * FROM orders JOIN b USING (%), secret", "SELECT * FROM orders JOIN b USING (a) AS %, secret", "SELECT * FROM orders JOIN b ON %, secret",
		"SELECT * FROM orders JOIN b ON a = %, secret", "SELECT * FROM orders JOIN b ON % (a), secret", "SELECT * FROM %, secret", "SELECT * FROM ONLY %, secret",
		"SELECT * FROM a . %, secret", "SELECT * FROM % . a, secret", "SELECT * FROM % (1), secret", "SELECT * FROM % a, secret", "SELECT * FROM ROWS FROM (% (1), secret(1)), secret",
		"SELECT * FROM xmltable('a' PASSING b COLUMNS % int PATH secret(1), c text) %, secret", "SELECT * FROM xmltable('a' PASSING b COLUMNS c % secret(1)), secret",
		"SELECT * FROM json_table(a, '$' COLUMNS (% int PATH '$')) AS %, secret", "SELECT * FROM json_table(a, '$' AS % COLUMNS (a int DEFAULT secret(1) ON EMPTY)), secret",
		"SELECT a % FROM secret", "SELECT a AS % FROM secret", "SELECT % FROM secret", "SELECT a . % FROM secret", "SELECT % . a FROM secret", "SELECT (a) . % FROM secret",
		"SELECT a :: % FROM secret", "SELECT a :: % AS % FROM secret", "SELECT CAST(a AS %) FROM secret", "SELECT % 'a' FROM secret", "SELECT % (1), secret(2) FROM secret",
		"SELECT a . % (1), secret(2) FROM secret", "SELECT a COLLATE % FROM secret", "SELECT a COLLATE b . % FROM secret", "SELECT f(% => secret(1)) FROM secret",
		"SELECT f(% := secret(1)) FROM secret", "SELECT $1 . % FROM secret", "SELECT a [1] . % FROM secret", "SELECT a, secret(1) % FROM b", "SELECT xmlelement(NAME %, secret(1)) FROM secret",
		"SELECT xmlforest(a AS %, secret(1)) FROM secret", "SELECT extract(% FROM secret(a)) FROM secret", "SELECT json_object(% : secret(1)) FROM secret",
		"SELECT DISTINCT ON (%) secret(1) FROM secret", "SELECT a FROM b ORDER BY %, secret(1)", "SELECT a FROM b ORDER BY % (1), secret(1)", "SELECT a FROM b ORDER BY a % secret(1)",
		"SELECT a FROM b WHERE a % secret(1)", "SELECT a FROM b WHERE % (secret(1))", "SELECT a FROM b WHERE % (SELECT 1 FROM secret)", "SELECT a FROM b WHERE a % (TABLE secret)",
		"SELECT a FROM b GROUP BY %, secret(1)", "SELECT a FROM b GROUP BY % (secret(1)), secret2(1)", "SELECT a FROM b GROUP BY a, % (secret(1))", "SELECT a FROM b GROUP BY a HAVING % (secret(1))",
		"SELECT sum(a) OVER % FROM secret WINDOW % AS (PARTITION BY secret(1))", "SELECT sum(a) OVER (% PARTITION BY secret(1)) FROM secret", "SELECT sum(a) OVER (ORDER BY % ROWS secret(1) PRECEDING) FROM secret",
		"SELECT a FROM b LIMIT %, secret(1)", "SELECT a FROM b OFFSET % (1) ROWS FETCH NEXT secret(1) ROWS ONLY", "SELECT a FROM b FOR UPDATE OF %", "SELECT a INTO % FROM secret", "SELECT a INTO TABLE % FROM secret", "SELECT a INTO TEMP % FROM secret",
		"SELECT a FROM b UNION % FROM secret", "VALUES (%), (secret(1))", "TABLE %", "SELECT a FROM b CROSS JOIN % JOIN secret ON true",
		"WITH % AS (SELECT 1) SELECT * FROM secret, b", "WITH % (a) AS (SELECT 1) SELECT * FROM secret", "WITH a AS (SELECT 1), % AS (TABLE secret) SELECT * FROM a, b, secret",
		"WITH % AS (SELECT 1) SELECT * FROM (SELECT * FROM b) % (a), secret", "WITH RECURSIVE a AS (SELECT 1) SEARCH DEPTH FIRST BY % SET b SELECT * FROM a, secret",
		"WITH RECURSIVE a AS (SELECT 1) SEARCH BREADTH FIRST BY a, % SET %, b AS (SELECT 1) SELECT * FROM a, secret", "WITH RECURSIVE a AS (SELECT 1) CYCLE %, b SET c USING d SELECT * FROM a, secret",
		"WITH RECURSIVE a AS (SELECT 1) CYCLE a SET % USING % SELECT * FROM a, secret", "WITH RECURSIVE a AS (SELECT 1) CYCLE a SET b TO secret(1) DEFAULT secret(2) USING % SELECT * FROM a, secret",
	}
	changePlaces = []string{
		"DELETE FROM orders % USING secret", "DELETE FROM orders AS % USING secret", "DELETE FROM % USING secret", "DELETE FROM orders USING b %, secret", "DELETE FROM orders USING b % (a), secret",
		"DELETE FROM orders USING f(1) WITH ORDINALITY AS % (a, b), secret", "DELETE FROM orders USING b AS % (a) JOIN secret ON true RETURNING a %, secret(1)",
		"UPDATE orders % SET a = secret(1) FROM b, secret", "UPDATE orders AS % SET a = 1 FROM secret", "UPDATE % SET a = secret(1)", "UPDATE % * SET a = 1 FROM secret", "UPDATE ONLY % SET a = 1 FROM secret", "UPDATE ONLY (%) a SET a = 1 FROM secret",
		"UPDATE a . % SET a = 1 FROM secret", "UPDATE orders SET % = secret(1) FROM secret", "UPDATE orders SET (%, b) = (SELECT 1, 2 FROM secret)", "UPDATE orders SET % [1] = secret(1)", "UPDATE orders SET a = % FROM b % (a), secret",
		"UPDATE orders SET a = 1 FROM secret WHERE CURRENT OF %", "MERGE INTO orders % USING secret ON true WHEN MATCHED THEN DELETE", "MERGE INTO orders AS % USING secret ON true WHEN MATCHED THEN DELETE",
		"MERGE INTO % USING secret ON true WHEN MATCHED THEN DO NOTHING", "MERGE INTO orders USING secret % ON true WHEN NOT MATCHED THEN INSERT (%) VALUES (secret(1))", "MERGE INTO orders USING b % JOIN secret ON true ON true WHEN MATCHED THEN UPDATE SET % = secret(1)",
		"MERGE INTO orders USING b AS % (a) JOIN secret ON true ON true WHEN NOT MATCHED BY SOURCE AND % THEN DELETE RETURNING a %, secret(1)", "INSERT INTO orders AS % SELECT * FROM secret", "INSERT INTO orders (%) SELECT * FROM secret",
		"INSERT INTO % TABLE secret", "INSERT INTO % (a) VALUES (secret(1))", "INSERT INTO a . % SELECT * FROM secret", "INSERT INTO orders SELECT * FROM b % (a), secret", "INSERT INTO orders VALUES (1) ON CONFLICT (%) DO UPDATE SET a = secret(1)",
		"INSERT INTO orders VALUES (1) ON CONFLICT (%, secret(a)) WHERE % DO UPDATE SET % = (SELECT 1 FROM secret)", "INSERT INTO orders VALUES (1) ON CONFLICT ON CONSTRAINT % DO UPDATE SET a = (SELECT 1 FROM secret) RETURNING a %, secret(1)",
		"INSERT INTO orders WITH % AS (SELECT 1) SELECT * FROM secret", "INSERT INTO orders DEFAULT VALUES RETURNING a AS %, (SELECT 1 FROM secret)",
	}
	definitionPlaces = []string{
		"CREATE TABLE % (LIKE secret)", "CREATE TABLE orders (% int DEFAULT secret(1))", "CREATE TABLE orders (a % DEFAULT secret(1))", "CREATE TABLE orders (a int COLLATE % DEFAULT secret(1), LIKE secret)", "CREATE TABLE orders (a int CONSTRAINT % REFERENCES secret)",
		"CREATE TABLE orders (a int, CONSTRAINT % CHECK (secret(a)))", "CREATE TABLE orders (a int, FOREIGN KEY (%) REFERENCES secret (%))", "CREATE TABLE orders (a int REFERENCES b (%) REFERENCES secret)", "CREATE TABLE orders () INHERITS (%, secret)", "CREATE TABLE orders (LIKE %, LIKE secret)",
		"CREATE TABLE orders (a int, EXCLUDE USING % (a WITH =, secret(b) WITH =) WHERE (secret2(a)))", "CREATE TABLE % PARTITION OF secret FOR VALUES IN (1)", "CREATE TABLE orders PARTITION OF % DEFAULT PARTITION BY RANGE (secret(a))", "CREATE TABLE orders (a int) PARTITION BY % (secret(a))",
		"CREATE TABLE orders (a int) PARTITION BY LIST (%, secret(a))", "CREATE TABLE orders (a int) PARTITION BY LIST (a %, secret(a))", "CREATE TABLE orders (a int) USING % WITH (% = 1) TABLESPACE %", "CREATE TABLE orders USING % AS SELECT * FROM secret", "CREATE TABLE orders WITH (% = a) AS SELECT * FROM secret", "CREATE TABLE orders TABLESPACE % AS TABLE secret",
		"CREATE TABLE % AS SELECT * FROM secret", "CREATE TABLE orders (%) AS SELECT * FROM secret", "CREATE TABLE % OF a (b DEFAULT secret(1))", "CREATE TABLE orders OF % (% WITH OPTIONS DEFAULT secret(1))", "CREATE TABLE orders (a int GENERATED ALWAYS AS (secret(%)) STORED)",
		"CREATE INDEX % ON secret (a)", "CREATE INDEX ON % (secret(a))", "CREATE INDEX ON orders (%, secret(a))", "CREATE INDEX ON orders (a %, secret(a))", "CREATE INDEX ON orders (a COLLATE %, secret(a))", "CREATE INDEX ON orders USING % (secret(a))", "CREATE INDEX ON orders (% (a), secret(a))", "CREATE INDEX ON orders (a) INCLUDE (%) WITH (% = 1) TABLESPACE % WHERE secret(a)",
		"CREATE INDEX ON orders (a % (b = 1), secret(a))", "ALTER TABLE orders ADD % int DEFAULT secret(1)", "ALTER TABLE orders ADD COLUMN a % DEFAULT secret(1)", "ALTER TABLE orders ADD CONSTRAINT % FOREIGN KEY (%) REFERENCES secret (%)", "ALTER TABLE orders ALTER % TYPE int USING secret(a)", "ALTER TABLE orders ALTER a TYPE % USING secret(a)", "ALTER TABLE orders ALTER % SET DEFAULT secret(1)",
		"ALTER TABLE orders DROP %, INHERIT secret", "ALTER TABLE % INHERIT secret", "ALTER TABLE orders INHERIT %, NO INHERIT secret", "ALTER TABLE orders ATTACH PARTITION % FOR VALUES IN (secret(1))", "ALTER TABLE % ATTACH PARTITION secret DEFAULT", "ALTER TABLE orders RENAME % TO a", "ALTER TABLE orders RENAME a TO %", "ALTER TABLE orders DETACH PARTITION %", "ALTER TABLE orders SET SCHEMA %",
		"ALTER TABLE orders OWNER TO %, ADD a int DEFAULT secret(1)", "ALTER TABLE orders ADD CONSTRAINT % PRIMARY KEY USING INDEX %, ADD a int DEFAULT secret(1)", "ALTER TABLE orders CLUSTER ON %, INHERIT secret", "ALTER TABLE orders SET (% = 1), INHERIT secret", "ALTER TABLE orders ENABLE TRIGGER %, INHERIT secret", "ALTER TABLE orders REPLICA IDENTITY USING INDEX %, INHERIT secret",
		"ALTER SEQUENCE % OWNED BY secret . a", "CREATE SEQUENCE % OWNED BY secret . %", "CREATE SEQUENCE a AS % OWNED BY secret . b", "DROP TABLE %, secret", "DROP INDEX %, secret", "COMMENT ON TABLE % IS 'a'", "COMMENT ON COLUMN secret . % IS 'a'", "GRANT SELECT (%) ON secret TO a", "GRANT SELECT ON %, secret TO a", "REVOKE ALL ON % FROM a",
		"TRUNCATE %, secret", "LOCK TABLE %, secret IN SHARE MODE", "VACUUM (%) secret", "ANALYZE % (a), secret (%)", "COPY % TO STDOUT", "COPY secret (%) TO STDOUT", "COPY secret (%) FROM STDIN WHERE secret(1)", "COPY orders FROM STDIN WITH (FORMAT %) WHERE secret(1)", "COPY orders FROM STDIN (% a) WHERE secret(1)", "COPY (SELECT * FROM b % (a), secret) TO STDOUT",
		"PREPARE % AS SELECT * FROM secret", "PREPARE a (%) AS SELECT * FROM secret", "EXECUTE % (secret(1))", "DECLARE % CURSOR FOR SELECT * FROM secret", "EXPLAIN (%) SELECT * FROM secret", "EXPLAIN (ANALYZE %) SELECT * FROM secret", "SET % = a", "SET LOCAL % TO a", "RESET %", "CREATE SCHEMA %", "CREATE TABLE a AS EXECUTE %",
	}
	// frames stand around a query.
	queryFrames = []string{
		"%", "CREATE TABLE x AS %", "INSERT INTO x %", "COPY (%) TO STDOUT", "DECLARE x CURSOR FOR %", "PREPARE x AS %", "EXPLAIN %", "SELECT * FROM (%) x, secret", "SELECT * FROM a WHERE a = (%)", "(%)",
		"WITH x AS (%) SELECT 1 FROM secret", "CREATE TABLE x AS WITH y AS (%) SELECT * FROM secret", "WITH RECURSIVE x AS MATERIALIZED (%) SELECT 1 FROM secret", "EXPLAIN ANALYZE CREATE TABLE x AS %", "SELECT 1 UNION (%)", "MERGE INTO x USING (%) y ON true WHEN MATCHED THEN DELETE",
	}
	// changeFrames stand around a statement that changes data.
	changeFrames = []string{"%", "CREATE TABLE x AS WITH y AS (%) SELECT * FROM secret", "WITH x AS (%) SELECT 1 FROM secret", "PREPARE x AS %", "EXPLAIN %", "COPY (%) TO STDOUT", "INSERT INTO x WITH y AS (%) SELECT * FROM secret"}
)

// usedWords are the keywords that the reader names, with those that begin like one.
func usedWords(t *testing.T) []string {
	t.Helper()
	var source strings.Builder
	for _, file := range []string{"scan.go", "statement.go", "definition.go"} {
		source.Write(testenv.MustGet(os.ReadFile(file))(t))
	}
	var words []string
	for word, k := range keywordWords() {
		name := "kw"
		for part := range strings.SplitSeq(word, "_") {
			name += strings.ToUpper(part[:1]) + part[1:]
		}
		if strings.Contains(source.String(), name) && !k.reserved() {
			words = append(words, word)
		}
	}
	slices.Sort(words)
	return words
}

// TestPlaces compares the facts of statements that have a keyword in the place of a name
// with what libpg_query sees. CHAPERONE_LONG asks for every keyword within every frame.
func TestPlaces(t *testing.T) {
	words, few := usedWords(t), 2
	if os.Getenv("CHAPERONE_LONG") != "" {
		words, few = slices.Sorted(maps.Keys(keywordWords())), len(queryFrames)
	}
	valid, wrong := 0, map[string]int{}
	try := func(place, text string) {
		want, ok := parse(text)
		if !ok {
			return
		}
		valid++
		if v := compare(text, want); v.wrong != "" {
			if wrong[place]++; wrong[place] <= 3 {
				t.Errorf("%s\n%s", v.wrong, text)
			}
		}
	}
	every := func(places, frames []string) {
		for _, place := range places {
			for _, frame := range frames {
				for _, word := range words {
					try(place, strings.ReplaceAll(strings.Replace(frame, "%", place, 1), "%", word))
				}
			}
		}
	}
	every(queryPlaces, queryFrames[:few])
	every(changePlaces, changeFrames[:min(few, len(changeFrames))])
	every(definitionPlaces, []string{"%"})
	if t.Logf("%d words, %d valid statements", len(words), valid); valid < 10_000 {
		t.Errorf("%d statements are valid, want 10,000", valid)
	}
}
