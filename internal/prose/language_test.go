package prose

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
)

var (
	root   = flag.String("root", "../..", "the checkout whose texts are read")
	folder = flag.String("folder", "", "print every fault in this folder and those below it")
	words  = flag.String("words", "", "with -folder: print faults whose quote or advice contains this only")
)

// figures are the counts of a folder.
type figures struct {
	comments, what, first int // sentences of comments; of these, beginning with What, and with any word of R1
	faults                [rules]int
	failures              int // of these faults, in messages of tests
	none                  int // phrases with none as a predicate
	logs                  int // log messages
}

// TestLanguage checks the texts of every folder by the rules, and prints their counts.
func TestLanguage(t *testing.T) {
	list := loadBanned(t)
	all := map[string]*figures{"(all)": {}}
	for _, found := range collect(t, *root) {
		if all[found.folder] == nil {
			all[found.folder] = &figures{}
		}
		faults, count := check(found, list)
		all[found.folder].add(found, faults, count)
		all["(all)"].add(found, faults, count)
		for _, f := range faults {
			if *folder == "" || within(found, *folder) {
				report(t, found, f)
			}
		}
	}
	t.Log("\n" + table(all))
}

// report fails the test for one fault.
func report(t *testing.T, found text, f fault) {
	t.Helper()
	if line := f.quote + ": " + f.advice; strings.Contains(line, *words) {
		t.Errorf("%s:%d: %v: %s", found.file, found.line, f.rule, line)
	}
}

// within reports whether a text is of a folder, one below it, or a file.
func within(t text, folder string) bool {
	return t.file == folder || t.folder == folder || strings.HasPrefix(t.folder, folder+"/")
}

func (f *figures) add(found text, faults []fault, count int) {
	if found.kind == comment {
		f.comments += count
	}
	if found.kind == logLine {
		f.logs++
	}
	for _, fault := range faults {
		f.faults[fault.rule]++
		if found.kind == failure {
			f.failures++
		}
		if fault.rule == relative && found.kind == comment {
			f.first++
			if strings.HasPrefix(strings.ToLower(fault.quote), "what") {
				f.what++
			}
		}
		if strings.Contains(fault.advice, ` none"`) {
			f.none++
		}
	}
}

// table prints the counts of each folder.
func table(all map[string]*figures) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "comment sentences\tWhat ‰\tR1 ‰\tR1\tR2\tis none\tR3\tR4\tof logs\tin tests' messages\t folder")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f := all[name]
		fmt.Fprintf(w, "%d\t%.1f\t%.1f\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t %s\n", f.comments, permille(f.what, f.comments), permille(f.first, f.comments),
			f.faults[relative], f.faults[bannedWord], f.none, f.faults[speech], f.faults[logGrammar], f.logs, f.failures, name)
	}
	if err := w.Flush(); err != nil {
		panic(err) // a strings.Builder does not fail
	}
	return b.String()
}

func permille(part, whole int) float64 { return 1000 * float64(part) / float64(max(1, whole)) }
