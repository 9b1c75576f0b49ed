package resp

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"go/format"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write table.go from the running server")

// TestTable compares table.go with what the server states of its commands.
func TestTable(t *testing.T) {
	server := startServer(t)
	commands, ok := server.do(t, "COMMAND").([]any)
	if !ok {
		t.Fatal("COMMAND is not answered by an array")
	}
	source, err := format.Source(generate(t, server.version(t), commands))
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("table.go", source, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	committed, err := os.ReadFile("table.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(committed, source) {
		t.Error("table.go is not what the server states of its commands; run go generate ./facts/resp with the Redis of Debian 12")
	}
}

type entry struct {
	name string
	text string
}

// generate returns the source of table.go.
func generate(t *testing.T, version string, commands []any) []byte {
	t.Helper()
	groups := map[string]bool{}
	var entries []entry
	var walk func(commands []any)
	walk = func(commands []any) {
		for _, c := range commands {
			fields := c.([]any)
			for _, g := range fields[6].([]any) {
				groups[strings.TrimPrefix(g.(string), "@")] = true
			}
			walk(fields[9].([]any))
		}
	}
	walk(commands)
	names := make([]string, 0, len(groups))
	for g := range groups {
		names = append(names, g)
	}
	slices.Sort(names)
	walk = func(commands []any) {
		for _, c := range commands {
			fields := c.([]any)
			entries = append(entries, entry{name: fields[0].(string), text: rowSource(t, fields, names)})
			walk(fields[9].([]any))
		}
	}
	walk(commands)
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.name, b.name) })

	var b bytes.Buffer
	fmt.Fprintf(&b, "// Code generated from COMMAND of Redis %s by TestTable; DO NOT EDIT.\n\npackage resp\n\n", version)
	fmt.Fprintf(&b, "// groupBlocking is the category blocking.\nconst groupBlocking = 1 << %d\n\n", slices.Index(names, "blocking"))
	b.WriteString("// groupNames returns the names of the categories, without @.\nfunc groupNames() []string {\nreturn []string{")
	for _, g := range names {
		fmt.Fprintf(&b, "%q, ", g)
	}
	b.WriteString("}\n}\n\n// commandNames returns the names of all rows, those of subcommands as in config|get.\nfunc commandNames() []string {\nreturn []string{\n")
	for _, e := range entries {
		fmt.Fprintf(&b, "%q,\n", e.name)
	}
	b.WriteString("}\n}\n\n// lookup returns the row of a command, that of a subcommand by a name as config|get.\nfunc lookup(name string) (r row, ok bool) {\nswitch name {\n")
	for _, e := range entries {
		fmt.Fprintf(&b, "case %q:\nreturn row{%s}, true\n", e.name, e.text)
	}
	b.WriteString("}\nreturn row{}, false\n}\n")
	return b.Bytes()
}

// rowSource returns the fields of a row. The keys of commands that own.go reads are left out.
func rowSource(t *testing.T, fields []any, groups []string) string {
	t.Helper()
	name := fields[0].(string)
	bits := uint32(0)
	for _, g := range fields[6].([]any) {
		bits |= 1 << slices.Index(groups, strings.TrimPrefix(g.(string), "@"))
	}
	name = strings.ReplaceAll(name, "|", " ")
	text := fmt.Sprintf("name: %q, arity: %d, ", name, fields[1])
	if len(fields[9].([]any)) > 0 {
		text += "container: true, "
	}
	text += fmt.Sprintf("groups: %#x, ", bits)
	r := row{name: name, groups: bits}
	for _, flag := range []struct {
		name string
		set  bool
	}{{"forbidden", Forbidden(name)}, {"own", ownReading(name)}, {"connection", ofConnection(name)}, {"long", r.isLong()}} {
		if flag.set {
			text += flag.name + ": true, "
		}
	}
	specs := fields[8].([]any)
	if len(specs) == 0 || ownReading(name) || Forbidden(name) {
		return text
	}
	if len(specs) > 2 {
		t.Fatalf("%s has %d key specifications; a row has 2: own.go must read it", name, len(specs))
	}
	text += "keys: [2]keySpec{"
	for _, s := range specs {
		text += keySource(t, name, pairs(s))
	}
	return text + "}"
}

func keySource(t *testing.T, name string, spec map[string]any) string {
	t.Helper()
	begin, find := pairs(spec["begin_search"]), pairs(spec["find_keys"])
	flags := fmt.Sprint(spec["flags"])
	if begin["type"] != "index" || strings.Contains(flags, "incomplete") || strings.Contains(flags, "not_key") {
		t.Fatalf("%s: key specification %v is not one that a row states: own.go must read it", name, spec)
	}
	index, how := pairs(begin["spec"])["index"], pairs(find["spec"])
	switch find["type"] {
	case "range":
		if how["limit"] != int64(0) {
			t.Fatalf("%s: key specification %v has a limit: own.go must read it", name, spec)
		}
		return fmt.Sprintf("{kind: keyRange, index: %d, last: %d, step: %d}, ", index, how["lastkey"], how["keystep"])
	case "keynum":
		return fmt.Sprintf("{kind: keyCount, index: %d, count: %d, first: %d, step: %d}, ", index, how["keynumidx"], how["firstkey"], how["keystep"])
	}
	t.Fatalf("%s: key specification %v is not one that a row states: own.go must read it", name, spec)
	return ""
}

// pairs returns the map that RESP2 has as an array of names and values.
func pairs(v any) map[string]any {
	list, out := v.([]any), map[string]any{}
	for i := 0; i+1 < len(list); i += 2 {
		out[list[i].(string)] = list[i+1]
	}
	return out
}
