package ebpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"go/build"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// howToGenerate is what to do when the objects and their sources differ.
const howToGenerate = "make them again on Debian 12, whose compiler bpf/toolchain names: tools/setup generate && make generate, and commit both"

// generated are the files of a folder that bpf2go wrote.
func generated(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*_bpfel.*"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no generated files in %s: %v", dir, err)
	}
	files := make(map[string][]byte, len(names))
	for _, name := range names {
		files[filepath.Base(name)] = testenv.MustGet(os.ReadFile(name))(t)
	}
	return files
}

// needToolchain skips where the objects cannot come out the same: their bytes
// depend on the compiler, on libbpf's headers and on the kernel's.
func needToolchain(t *testing.T) {
	t.Helper()
	testenv.Require(t, testenv.Program("clang"), testenv.Program("llvm-strip"))
	want := strings.TrimSpace(string(testenv.MustGet(os.ReadFile("bpf/toolchain"))(t)))
	found, err := exec.CommandContext(t.Context(), "../tools/setup", "toolchain").CombinedOutput()
	got := strings.TrimSpace(string(found))
	if err == nil && got == want {
		return
	}
	reason := fmt.Sprintf("the objects are made with %s; this machine has %s", want, got)
	if os.Getenv("CHAPERONE_REQUIRE") == "1" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// TestGenerate makes the committed objects again, in another folder than the
// one they were made in: what is loaded into the kernel is what can be read here.
func TestGenerate(t *testing.T) {
	needToolchain(t)
	root := t.TempDir()
	for _, name := range []string{"go.mod", "go.sum"} {
		testenv.Must(t, os.WriteFile(filepath.Join(root, name), testenv.MustGet(os.ReadFile("../"+name))(t), 0o600))
	}
	room := filepath.Join(root, "ebpf")
	testenv.Must(t, os.CopyFS(filepath.Join(room, "bpf"), os.DirFS("bpf")))
	testenv.Must(t, os.WriteFile(filepath.Join(room, "gen.go"), testenv.MustGet(os.ReadFile("gen.go"))(t), 0o600))
	cmd := exec.CommandContext(t.Context(), "go", "generate", ".")
	cmd.Dir = room
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go generate: %v\n%s", err, out)
	}
	committed, made := generated(t, "."), generated(t, room)
	if want, got := slices.Sorted(maps.Keys(committed)), slices.Sorted(maps.Keys(made)); !slices.Equal(want, got) {
		t.Errorf("committed are %v, and gen.go makes %v", want, got)
	}
	for name, want := range committed {
		if got, ok := made[name]; ok && !bytes.Equal(got, want) {
			t.Errorf("%s is not what its source makes (%d bytes, and %d came out): %s", name, len(want), len(got), howToGenerate)
		}
	}
}

// TestOneObject checks that both platforms embed the same objects, and that a
// big-endian one embeds none: the programs follow the kernel's structures by
// its type information, so only the specification of bytes is compiled in.
func TestOneObject(t *testing.T) {
	embedded := func(arch string) []string {
		platform := build.Default
		platform.GOOS, platform.GOARCH, platform.CgoEnabled = "linux", arch, false
		room := testenv.MustGet(platform.ImportDir(".", 0))(t)
		slices.Sort(room.EmbedPatterns)
		return room.EmbedPatterns
	}
	var objects []string
	for name, data := range generated(t, ".") {
		if filepath.Ext(name) != ".o" {
			continue
		}
		objects = append(objects, name)
		spec := testenv.MustGet(ebpf.LoadCollectionSpecFromReader(bytes.NewReader(data)))(t)
		if spec.ByteOrder != binary.LittleEndian {
			t.Errorf("%s is %v", name, spec.ByteOrder)
		}
	}
	slices.Sort(objects)
	for _, arch := range []string{"amd64", "arm64"} {
		if got := embedded(arch); !slices.Equal(got, objects) {
			t.Errorf("%s embeds %v, not %v", arch, got, objects)
		}
	}
	if got := embedded("s390x"); len(got) > 0 {
		t.Errorf("s390x, which is big-endian, embeds %v", got)
	}
}

// TestNames checks that what the programs call a hook and a cause by number is
// what Go calls it: the one thing that bpf2go does not carry over, because the
// event holds them as bytes.
func TestNames(t *testing.T) {
	header := string(testenv.MustGet(os.ReadFile("bpf/chaperone.bpf.h"))(t))
	for prefix, name := range map[string]func(uint8) string{
		"HOOK": func(n uint8) string { return string(hookName(n)) },
		"WHY":  func(n uint8) string { return string(causeName(n)) },
	} {
		entries := regexp.MustCompile(`(?m)^\s*`+prefix+`_([A-Z_]+) = (\d+),`).FindAllStringSubmatch(header, -1)
		if len(entries) < 5 {
			t.Fatalf("found only %d values of %s_", len(entries), prefix)
		}
		for _, entry := range entries {
			if prefix+entry[1] == "HOOKLIMIT" {
				continue // it reports no refusal
			}
			n := testenv.MustGet(strconv.ParseUint(entry[2], 10, 8))(t)
			if got, want := name(uint8(n)), strings.ToLower(entry[1]); got != want {
				t.Errorf("%s_%s is %d, which Go calls %q", prefix, entry[1], n, got)
			}
		}
	}
}

// TestConstants checks that numbers which the programs and Go both write down
// are the same ones. bpf2go carries types over, and no macros.
func TestConstants(t *testing.T) {
	written := make(map[string]uint64)
	for _, name := range testenv.MustGet(filepath.Glob("bpf/*.bpf.[ch]"))(t) {
		source := string(testenv.MustGet(os.ReadFile(name))(t))
		number := regexp.MustCompile(`(?m)\b([A-Z][A-Z_]+) ?=? \(?(\d+)[uUL]*(?: << (\d+))?\b`)
		for _, found := range number.FindAllStringSubmatch(source, -1) {
			value := testenv.MustGet(strconv.ParseUint(found[2], 10, 64))(t)
			if found[3] != "" {
				value <<= testenv.MustGet(strconv.ParseUint(found[3], 10, 6))(t)
			}
			written[found[1]] = value
		}
	}
	for name, want := range map[string]uint64{
		"LIMIT_CONNECTIONS": uint64(LimitConnections), "LIMIT_SENT": uint64(LimitSentBytes), "LIMIT_RECEIVED": uint64(LimitReceivedBytes),
		"LIMIT_SYSCALLS": uint64(LimitSyscalls), "LIMIT_PROCESSES": uint64(LimitProcesses),
		"PER_KIND": MaxLimits, "SLOTS": slots, "FOREVER": forever, "LEASE": lease,
		"HOOK_LIMIT": hookLimit, "PENDING_STOP": pendingStop, "PENDING_KILL": pendingKill,
		"IN_FORCE_WHICH": inForceWhich, "IN_FORCE_ACTIONS": inForceActions, "IN_FORCE_BLOCKS": inForceBlocks,
		"IN_FORCE_PACE": inForcePace, "IN_FORCE_RULES": inForceRules,
	} {
		if got, ok := written[name]; !ok || got != want {
			t.Errorf("%s is %d in Go, and in the programs %d", name, want, got)
		}
	}
	if got := uint64(1) << written["RULE_BITS"]; got != MaxRules {
		t.Errorf("MaxRules is %d, and the programs have room for %d", MaxRules, got)
	}
}
