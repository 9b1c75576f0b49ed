package differential

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// direct is the run that the others are compared with.
const direct = "direct"

// throughModes are the ways through the sidecar: by the proxy that the environment
// names, without those variables, and both in front of an Envoy. The variable
// DIFFERENTIAL_MODES names fewer, for people.
var throughModes = modes()

func modes() []string {
	if some := os.Getenv("DIFFERENTIAL_MODES"); some != "" {
		return strings.Split(some, ",")
	}
	return []string{"explicit", "transparent", "envoy", "envoy-transparent"}
}

var allModes = append([]string{direct}, throughModes...)

// partial reports whether somebody chose pairs or ways.
func partial() bool { return os.Getenv("DIFFERENTIAL_PAIRS")+os.Getenv("DIFFERENTIAL_MODES") != "" }

// long reports whether the pairs that take minutes run: make test-long.
func long() bool { return os.Getenv("CHAPERONE_LONG") == "1" }

// TestDifferential compares what each client sees of each server directly and
// through the sidecar.
func TestDifferential(t *testing.T) {
	testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF(), testenv.EnvoyServer(), testenv.PostgreSQL(),
		testenv.Program("unshare"), testenv.Program("ip"), testenv.Program("node"), testenv.Program("npm"), testenv.Program("javac"),
		testenv.Program("curl"), testenv.Program("wget"), testenv.Program("busybox"), testenv.Program("git"), testenv.Program("openssl"),
		testenv.Program("nginx"), testenv.Program("sshd"), testenv.Program("psql"), testenv.Program("setpriv"), testenv.Program(testenv.SystemPython))
	if os.Getenv(isolated) == "" {
		buildClients(t)
		isolate(t)
		return
	}
	l := newLab(t)
	addWeb(l)
	addScripted(l)
	addFramed(l)
	addGRPC(l)
	addNginx(l)
	addLanguages(l)
	addTools(l)
	pairs := selected(allPairs(addTunnelled(l)))
	t.Logf("%d pairs", len(pairs))
	runners := map[string]*runner{}
	for _, start := range []func(*lab) map[string]*runner{startDirect, startSidecar, startEnvoy} {
		maps.Copy(runners, start(l))
	}
	seen := map[string]map[string]outcome{}
	for _, mode := range allModes {
		begun := time.Now()
		seen[mode] = runners[mode].run(t, mode, pairs, atOnce)
		t.Logf("%s: %v", mode, time.Since(begun).Round(time.Second))
	}
	if file := os.Getenv("DIFFERENTIAL_OUT"); file != "" { // for people
		testenv.Must(t, os.WriteFile(file, testenv.MustGet(json.Marshal(seen))(t), 0o600))
	}
	measureAgain(t, pairs, seen, runners)
	judge(t, pairs, seen)
}

// measureAgain runs the pairs that differ in nothing but times again, with few
// others: a noisy machine is slow here and there, and not each time at the same
// place.
func measureAgain(t *testing.T, pairs []pair, seen map[string]map[string]outcome, runners map[string]*runner) {
	for range 2 {
		for _, mode := range throughModes {
			slow := slices.DeleteFunc(slices.Clone(pairs), func(p pair) bool {
				return !onlyTimes(differences(seen[direct][p.name], seen[mode][p.name]))
			})
			maps.Copy(seen[direct], runners[direct].run(t, direct, slow, 2))
			maps.Copy(seen[mode], runners[mode].run(t, mode, slow, 2))
		}
	}
}

// selected leaves out the long pairs, and all but those that the variable
// DIFFERENTIAL_PAIRS names by parts of their names (a|b), which is for people.
func selected(pairs []pair) []pair {
	only := os.Getenv("DIFFERENTIAL_PAIRS")
	return slices.DeleteFunc(pairs, func(p pair) bool {
		return p.long && !long() || !slices.ContainsFunc(strings.Split(only, "|"), func(part string) bool { return strings.Contains(p.name, part) })
	})
}

// judge reports each difference that the table does not explain, and each
// explanation of the table that explains nothing.
func judge(t *testing.T, pairs []pair, seen map[string]map[string]outcome) {
	used := map[int]bool{}
	explained := 0
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			base := seen[direct][p.name]
			if p.works != (base.Fields["error"] == "") {
				t.Errorf("without the sidecar it does not do what it is to: %v", base)
			}
			for _, mode := range throughModes {
				through, shown := seen[mode][p.name], false
				for _, d := range differences(base, through) {
					if i := explanation(p.name, mode, d.field); i >= 0 {
						used[i] = true
						explained++
						continue
					}
					t.Errorf("%s: %s is %s, directly %s", mode, d.field, d.through, d.direct)
					shown = true
				}
				if shown {
					t.Logf("%s\ndirectly: %v\n%s: %v", strings.Join(p.args, " "), base, mode, through)
				}
			}
		})
	}
	t.Logf("%d pairs in %d ways: %d differences explained", len(pairs), len(throughModes), explained)
	if partial() || long() {
		return // entries are of pairs that did not run
	}
	for i, e := range explanations {
		if !used[i] {
			t.Errorf("%q of %q in %q does not differ any more: take the entry out of the table", e.field, e.pair, e.mode)
		}
	}
}

// difference is a field that is not the same.
type difference struct{ field, direct, through string }

// ignored are headers that belong to one connection or to the moment, and with gRPC
// what is beside the status in an answer that has only trailers.
var ignored = []string{
	"header date", "header connection", "header keep-alive", "header transfer-encoding", "header proxy-connection",
	"trailer date", "trailer content-type", "trailer content-length",
}

// differences compares all fields but those that begin with _, which only explain,
// and times by what a server imposes.
func differences(a, b outcome) []difference {
	if answer := ownAnswer(b); answer != "" && ownAnswer(a) == "" {
		instead := a.Fields["status"] + " " + a.Fields["error"]
		return []difference{{"answer", show(strings.TrimSpace(instead)), show(answer)}}
	}
	var found []difference
	names := maps.Clone(a.Fields)
	maps.Copy(names, b.Fields)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if strings.HasPrefix(name, "_") || slices.Contains(ignored, name) {
			continue
		}
		x, y := a.Fields[name], b.Fields[name]
		same := x == y
		switch {
		case strings.HasSuffix(name, "seconds"):
			same = sameTime(a, b, name)
		case name == "header trailer": // a set
			same = members(x) == members(y)
		}
		if !same {
			found = append(found, difference{name, show(x), show(y)})
		}
	}
	return found
}

// ownAnswer is the answer of the sidecar itself, in place of the origin's.
func ownAnswer(o outcome) string {
	if reason := o.Fields["header x-chaperone-reason"]; reason != "" {
		return o.Fields["status"] + " " + reason
	}
	return ""
}

func show(text string) string { return strconv.Quote(text[:min(len(text), 300)]) }

// sameTime compares two times. Where a server imposes one, that is three seconds,
// and the machine may be slow by half of that between two events: head, first byte
// and end. Where it imposes none, only a wait of a program counts.
func sameTime(a, b outcome, name string) bool {
	if (a.Fields[name] == "") != (b.Fields[name] == "") {
		return false
	}
	x, first := since(a, name)
	y, _ := since(b, name)
	tolerance := 20.0
	if timed(a.ID) && !(first && startsSlowly(a.ID)) {
		tolerance = 1.5
	}
	difference := x - y
	return -tolerance < difference && difference < tolerance
}

func timed(pair string) bool {
	return matches("*slow*|*poll*|*events*|*timeout*|*deadline*|*stream*|*silent*|*early*|*cut*", pair)
}

// startsSlowly reports whether a client has much to do before its first request.
func startsSlowly(pair string) bool { return !matches("curl: *|go: *", pair) }

// since returns the seconds from the event before to the one that name is of, and
// whether it is the first.
func since(o outcome, name string) (seconds float64, first bool) {
	before, first := 0.0, true
	for _, event := range []string{"head seconds", "first seconds", "total seconds"} {
		at, err := strconv.ParseFloat(o.Fields[event], 64)
		if err != nil {
			continue
		}
		if event == name {
			return at - before, first
		}
		before, first = at, false
	}
	return 0, false
}

func members(list string) string {
	all := strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(",| ", r) })
	slices.Sort(all)
	return strings.Join(all, " ")
}

func onlyTimes(found []difference) bool {
	return len(found) > 0 && !slices.ContainsFunc(found, func(d difference) bool { return !strings.HasSuffix(d.field, "seconds") })
}

// explanation finds the entry of the table that explains a difference, -1 if none.
func explanation(pair, mode, field string) int {
	return slices.IndexFunc(explanations, func(e explained) bool {
		return matches(e.pair, pair) && matches(e.mode, mode) && matches(e.field, field)
	})
}

// matches reports whether one of the patterns, which | parts, is for name.
func matches(patterns, name string) bool {
	return slices.ContainsFunc(strings.Split(patterns, "|"), func(pattern string) bool {
		found, err := path.Match(pattern, strings.ReplaceAll(name, "/", " "))
		return found && err == nil
	})
}

func (o outcome) String() string {
	fields, err := json.MarshalIndent(o.Fields, "", "  ")
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s\n%s", fields, tail(o.Stderr, 1200))
}
