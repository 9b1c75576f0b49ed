package sql

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// Pieces are put into statements by splices, beside words and parts of other statements:
// each begins or ends a list, or makes a word what it usually is not.
var (
	// atoms stand for a value.
	atoms = []string{
		"secret(1)", "evil.secret(1)", "a . is", "a . from", "a . where", "a . only", "\"from\"", "(a IS DISTINCT FROM secret(1))", "(COLLATION FOR (a))",
		"a :: is", "a :: evil.t", "CAST(a AS is)", "(1 OPERATOR ( public . + ) secret(1))", "(SELECT 1 FROM secret)", "(TABLE secret)", "EXISTS (TABLE secret)",
		"extract(year FROM secret(a))", "trim(both FROM secret(a))", "substring(a FROM 1 FOR secret(2))", "CASE WHEN secret(a) THEN 1 END",
		"set_config('a.b', 'c', false)", "set_config('role', 'x', true)", "ARRAY(SELECT 1 FROM secret)", "ARRAY[secret(1), 2]", "a [ secret(1) ]",
		"treat(a AS pg_read_file)", "(VALUES (1))", "(WITH a AS (SELECT * FROM a) SELECT 1 FROM a, secret)", "count(*) FILTER (WHERE secret(a))",
		"sum(a) OVER (PARTITION BY secret(a))", "percentile_disc(0.5) WITHIN GROUP (ORDER BY secret(a))", "join(1)", "over(1)", "by(1)", "sets(1)", "cube(1)",
		"conflict(1)", "update", "insert", "delete", "distinct", "values", "only", "lateral", "row(1, secret(2))", "(secret).f", "f(a => secret(b))", "left(a, 1)",
		"xmlelement(name a, secret(1))", "json_object('a' VALUE secret(1))", "(a BETWEEN secret(a) AND 2)", "(a SIMILAR TO secret(b) ESCAPE secret(c))",
		"(a AT TIME ZONE secret(b))", "NOT secret(a)", "- secret(a)", "interval(3) '1'", "is 'x'", "U&\"secret\"(1)", "filter(1)", "set(1)", "is(1)", "ilike(1)",
	}
	// tails stand at the end of a query.
	tails = []string{
		", secret", "FROM secret", "FROM a, secret", "JOIN secret ON true", "JOIN secret USING (a)", "CROSS JOIN secret", "USING secret", "AS is", "AS from", "AS a",
		", LATERAL secret(a)", ", LATERAL (SELECT * FROM secret)", "WITH ORDINALITY AS secret (a)", "WITH ORDINALITY , secret", "TABLESAMPLE secret (1)",
		"WHERE secret(a)", "GROUP BY ROLLUP (a), cube(b)", "GROUP BY GROUPING SETS (CUBE (a), secret(b))", "HAVING secret(a)", "ORDER BY secret(a) USING OPERATOR(evil.<)",
		"FETCH FIRST (1) ROWS ONLY", "LIMIT secret(1)", "OFFSET secret(1)", "FOR UPDATE", "FOR NO KEY UPDATE OF a", "FOR KEY SHARE", "WINDOW secret AS (PARTITION BY f(a))",
		"UNION SELECT * FROM secret", "EXCEPT TABLE secret", "INTERSECT VALUES (1), (secret(2))", "INTO secret", "INTO TEMP secret", "RETURNING secret(a)",
		"RETURNING (SELECT 1 FROM secret)", "ON CONFLICT (a) DO NOTHING", "ON CONFLICT (a) WHERE secret(a) DO UPDATE SET a = secret(b), c = 1", "distinct FROM secret",
		"is distinct FROM secret", ", ROWS FROM (secret(1), generate_series(1, 2))", "JOIN (secret JOIN secret2 ON true) ON true", "WHERE CURRENT OF a", ":: is",
		"CROSS JOIN extract(year FROM a)", "update", "delete", "values", "join", "WHEN MATCHED THEN DELETE", "WHEN NOT MATCHED THEN INSERT (a) VALUES (secret(b))",
	}
)

// splicer makes statements out of others.
type splicer struct {
	rng        *rand.Rand
	statements [][]string
	keywords   []string
}

func newSplicer(seed uint64, texts []string) *splicer {
	s := &splicer{rng: rand.New(rand.NewPCG(seed, 1))}
	for _, text := range texts {
		tokens, reason := lex(text, nil)
		if reason != "" || len(tokens) < 2 || len(text) > 600 {
			continue
		}
		words := make([]string, len(tokens))
		for i, t := range tokens {
			words[i] = text[t.start:t.end]
		}
		s.statements = append(s.statements, words)
	}
	for word := range keywordWords() {
		s.keywords = append(s.keywords, word)
	}
	return s
}

func (s *splicer) any() []string { return s.statements[s.rng.IntN(len(s.statements))] }

// part returns a few tokens of a statement, or a bracket of it.
func (s *splicer) part(of []string) []string {
	from := s.rng.IntN(len(of))
	if of[from] == "(" {
		if to := closing(of, from); to > 0 {
			return of[from : to+1]
		}
	}
	return of[from:min(len(of), from+1+s.rng.IntN(6))]
}

// closing returns the index of the bracket that closes the one at i, -1 without one.
func closing(of []string, i int) int {
	depth := 0
	for ; i < len(of); i++ {
		switch of[i] {
		case "(":
			depth++
		case ")":
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

// splice returns a statement that one or two changes made.
func (s *splicer) splice() string {
	of := append([]string(nil), s.any()...)
	for range 1 + s.rng.IntN(2) {
		if len(of) == 0 {
			break
		}
		at := s.rng.IntN(len(of))
		var put []string
		remove := 0
		switch s.rng.IntN(16) {
		case 0:
			put = s.part(s.any())
		case 1:
			put, remove = s.part(s.any()), 1
			if to := closing(of, at); of[at] == "(" && to > 0 {
				remove = to + 1 - at
			}
		case 2:
			remove = 1
		case 3: // the beginning of one and the end of another
			other := s.any()
			put, remove = other[s.rng.IntN(len(other)):], len(of)
		case 4, 5, 6, 7, 8:
			at, put = s.near(of, at, func(w string) bool { return w == ")" || w == ";" }), []string{tails[s.rng.IntN(len(tails))]}
		case 9, 10, 11, 12:
			at, put, remove = s.near(of, at, isValue), []string{atoms[s.rng.IntN(len(atoms))]}, 1
		case 13: // a word like one of the same statement
			put, remove = []string{of[s.rng.IntN(len(of))]}, 1
		default:
			at, put, remove = s.near(of, at, isValue), []string{s.keywords[s.rng.IntN(len(s.keywords))]}, 1
		}
		rest := of[min(len(of), at+remove):]
		of = append(append(append([]string(nil), of[:at]...), put...), rest...)
	}
	return strings.Join(of, " ")
}

// near returns the next place from at that is wanted, at without one.
func (*splicer) near(of []string, at int, wanted func(string) bool) int {
	for i := at; i < len(of); i++ {
		if wanted(of[i]) {
			return i
		}
	}
	return at
}

// isValue reports whether a token is a name or a constant.
func isValue(word string) bool {
	c := word[0]
	return c == '\'' || c == '"' || classOf(c)&classWord != 0 && !keywordOf(word).reserved()
}

// TestSplices compares the facts of random splices of statements with what libpg_query
// sees. CHAPERONE_LONG asks 200,000 that are valid.
func TestSplices(t *testing.T) {
	seed, enough := uint64(1), 2_000
	if os.Getenv("CHAPERONE_LONG") != "" {
		seed, enough = rand.Uint64(), 200_000
	}
	t.Logf("seed %d", seed)
	s := newSplicer(seed, append(regressionSuite(t), corpusTexts(t)...))
	tried, valid, opaque, wrong := 0, 0, 0, 0
	for ; valid < enough && wrong < 20; tried++ {
		text := s.splice()
		if Read(text).Unreadable != "" {
			continue
		}
		want, ok := parse(text)
		if !ok {
			continue
		}
		valid++
		if valid%10_000 == 0 {
			t.Logf("%d splices, %d valid, %d opaque, %d wrong", tried, valid, opaque, wrong)
		}
		v := compare(text, want)
		if v.opaque {
			opaque++
		}
		if v.wrong != "" {
			wrong++
			t.Errorf("%s\n%s", v.wrong, text)
		}
	}
	t.Logf("%d splices, %d valid, %d opaque, %d wrong", tried, valid, opaque, wrong)
}
