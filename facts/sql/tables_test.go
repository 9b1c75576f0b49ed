package sql

import (
	"bytes"
	"flag"
	"fmt"
	"go/format"
	"maps"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

var update = flag.Bool("update", false, "rewrite catalog and tables_generated.go from running servers")

// tablesFile is made of what PostgreSQL 15 and 18 answer to catalog.sql. The keywords of
// 13, 14, 16 and 17 are between the two: from each version to the next, kwlist.h only
// gains words, moves json from unreserved to column names, and loses recheck.
const tablesFile = "tables_generated.go"

func catalogFile(version string) string { return "catalog/postgresql-" + version + ".tsv" }

// serverCatalog is what one server answered: by name, the class of a keyword, the properties of
// a function's overloads, and the readers of a relation.
type serverCatalog struct{ keywords, functions, relations map[string]string }

func readCatalog(t *testing.T, file string) *serverCatalog {
	t.Helper()
	data := testenv.MustGet(os.ReadFile(file))(t)
	c := &serverCatalog{map[string]string{}, map[string]string{}, map[string]string{}}
	kinds := map[string]map[string]string{"keyword": c.keywords, "function": c.functions, "relation": c.relations}
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 3 || kinds[f[0]] == nil {
			t.Fatalf("%s: %q is not a line of a kind, a name and a property", file, line)
		}
		kinds[f[0]][f[1]] = f[2]
	}
	return c
}

// both returns the names that each of two servers has with the property.
func both(a, b map[string]string, property string) []string {
	var out []string
	for name, p := range a {
		if p == property && b[name] == property {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// either returns the names that one of two servers has.
func either(a, b map[string]string) []string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}

func matches(name string, all []nameClass) bool {
	return slices.ContainsFunc(all, func(c nameClass) bool {
		return slices.ContainsFunc(c.names, func(pattern string) bool {
			ok, err := path.Match(pattern, name)
			return ok && err == nil
		})
	})
}

func without(names []string, all []nameClass) []string {
	return slices.DeleteFunc(names, func(name string) bool { return matches(name, all) })
}

// safeFunctionsOf returns the built-in functions that read nothing but their arguments and
// the catalog: plain in every overload of both servers, less the classes that are
// excluded, and the volatile ones that are included.
func safeFunctionsOf(a, b *serverCatalog) []string {
	names := without(both(a.functions, b.functions, "plain"), excludedFunctions)
	for _, c := range includedFunctions {
		names = append(names, c.names...)
	}
	slices.Sort(names)
	return names
}

func writeList(out *bytes.Buffer, name, doc string, values []string) {
	fmt.Fprintf(out, "\n// %s %s\nvar %s = [...]string{\n", name, doc, name)
	for _, v := range values {
		fmt.Fprintf(out, "%q,\n", v)
	}
	out.WriteString("}\n")
}

// writeKeywords writes a constant for each keyword, its class, and the function that
// finds one. A class that keeps a word from being a name is that of both servers.
func writeKeywords(out *bytes.Buffer, a, b *serverCatalog) {
	words := either(a.keywords, b.keywords)
	out.WriteString("\nconst (\nnoKeyword keyword = iota\n")
	for _, w := range words {
		fmt.Fprintf(out, "kw%s\n", camel(w))
	}
	out.WriteString(")\n\n// keywordClasses are the classes of the keywords.\nvar keywordClasses = [...]keywordClass{\n")
	for _, w := range words {
		class := "keywordName"
		switch {
		case a.keywords[w] == "R" && b.keywords[w] == "R":
			class = "keywordReserved"
		case a.keywords[w] == "T" && b.keywords[w] == "T":
			class = "keywordFunction"
		case a.keywords[w] == "C" && b.keywords[w] == "C":
			class = "keywordColumn"
		}
		fmt.Fprintf(out, "kw%s: %s,\n", camel(w), class)
	}
	out.WriteString("}\n\n// findKeyword returns the keyword of a word in lower case.\nfunc findKeyword(word []byte) keyword {\nswitch string(word) {\n")
	for _, w := range words {
		fmt.Fprintf(out, "case %q: return kw%s\n", w, camel(w))
	}
	out.WriteString("}\nreturn noKeyword\n}\n")
}

func camel(word string) string {
	var out strings.Builder
	for part := range strings.SplitSeq(word, "_") {
		out.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	return out.String()
}

// writeIndexes writes the places that names have in a list: a name of its own would take eight
// times as much of the program.
func writeIndexes(t *testing.T, out *bytes.Buffer, name, comment string, names, of []string) {
	fmt.Fprintf(out, "\n// %s %s\nvar %s = [...]uint16{\n", name, comment, name)
	for _, n := range names {
		i, ok := slices.BinarySearch(of, n)
		if !ok {
			t.Fatalf("%s is not in the list", n)
		}
		fmt.Fprintf(out, "%d, // %s\n", i, n)
	}
	out.WriteString("}\n")
}

// writePacked writes the functions of pg_catalog as one text, and where each name ends in
// it: a list of texts would take 40 KB more of the program.
func writePacked(t *testing.T, out *bytes.Buffer, names []string) {
	out.WriteString("\n// builtinNames are the functions of pg_catalog in their order, each behind the one before.\nconst builtinNames = \"\"")
	for _, n := range names {
		fmt.Fprintf(out, " +\n%q", n)
	}
	out.WriteString("\n\n// builtinEnds are where each ends in builtinNames.\nvar builtinEnds = [...]uint16{\n")
	end := 0
	for _, n := range names {
		if end += len(n); end > math.MaxUint16 {
			t.Fatal("the names are longer than a uint16 counts")
		}
		fmt.Fprintf(out, "%d,\n", end)
	}
	out.WriteString("}\n")
}

// writeTables returns the content of tablesFile.
func writeTables(t *testing.T) []byte {
	a, b := readCatalog(t, catalogFile("15")), readCatalog(t, catalogFile("18"))
	var out bytes.Buffer
	out.WriteString("// Code generated by facts/sql from catalog; DO NOT EDIT.\n\npackage sql\n")
	writeKeywords(&out, a, b)
	builtin := either(a.functions, b.functions)
	writePacked(t, &out, builtin)
	writeIndexes(t, &out, "safeFunctions", "are what the fact function:safe stands for, by their place among all.", safeFunctionsOf(a, b), builtin)
	writeList(&out, "catalogRelations", "are what the fact table:catalog stands for.", without(both(a.relations, b.relations, "public"), excludedRelations))
	writeList(&out, "systemRelations", "are the relations of pg_catalog and information_schema that every version has.",
		slices.DeleteFunc(either(a.relations, b.relations), func(n string) bool { return a.relations[n] == "" || b.relations[n] == "" || matches(n, newRelations) }))
	return testenv.MustGet(format.Source(out.Bytes()))(t)
}

// TestTables compares the tables with what they are made of.
func TestTables(t *testing.T) {
	if *update {
		updateCatalogs(t)
		testenv.Must(t, os.WriteFile(tablesFile, writeTables(t), 0o600))
	}
	if got := testenv.MustGet(os.ReadFile(tablesFile))(t); !bytes.Equal(got, writeTables(t)) {
		t.Errorf("%s differs; run go generate ./facts/sql", tablesFile)
	}
	if len(keywordWords()) < 400 {
		t.Error("the catalog has no keywords")
	}
	for word, k := range keywordWords() {
		if k == noKeyword {
			t.Errorf("%s is no keyword", word)
		}
	}
}

// TestBuiltins finds each function at its place, and no other name.
func TestBuiltins(t *testing.T) {
	a, b := readCatalog(t, catalogFile("15")), readCatalog(t, catalogFile("18"))
	for want, name := range either(a.functions, b.functions) {
		if i, ok := findBuiltin(name); !ok || i != want || builtinFunction(i) != name {
			t.Errorf("%s is at %d, %v, want %d", name, i, ok, want)
		}
	}
	for _, name := range []string{"", "A", "ab", "absabs", "xpath_exists2", "~"} {
		if isBuiltin(name) {
			t.Errorf("%q is a function", name)
		}
	}
}

// servers starts the servers of a test: the system's, and the newest.
func servers(t *testing.T) []*testenv.Postgres {
	t.Helper()
	testenv.Require(t, testenv.PostgreSQL(), testenv.NewestPostgres())
	return []*testenv.Postgres{testenv.MustPostgres(t), testenv.MustPostgresOf(t, testenv.PostgresConfig{Newest: true})}
}

// answerOf returns what a server answers to catalog.sql, and its version.
func answerOf(t *testing.T, p *testenv.Postgres) (version, answer string) {
	t.Helper()
	number := testenv.MustGet(p.Query(t.Context(), "SELECT current_setting('server_version_num')::int / 10000"))(t)[0]
	text := string(testenv.MustGet(os.ReadFile("catalog/catalog.sql"))(t))
	lines := testenv.MustGet(p.Query(t.Context(), text))(t)
	slices.Sort(lines)
	return number, strings.ReplaceAll(strings.Join(lines, "\n"), "|", "\t") + "\n"
}

func updateCatalogs(t *testing.T) {
	for _, p := range servers(t) {
		version, answer := answerOf(t, p)
		testenv.Must(t, os.WriteFile(catalogFile(version), []byte(answer), 0o600))
	}
}

// TestCatalogOfServers compares what the tables are made of with the servers. One of
// another version is not compared.
func TestCatalogOfServers(t *testing.T) {
	for _, p := range servers(t) {
		version, got := answerOf(t, p)
		want, err := os.ReadFile(catalogFile(version))
		if err != nil {
			t.Logf("PostgreSQL %s is not one that the tables are made of", version)
			continue
		}
		if got != string(want) {
			t.Errorf("PostgreSQL %s answers differently; run go generate ./facts/sql", version)
		}
	}
}
