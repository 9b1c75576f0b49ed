package ebpf

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/chaperone-proxy/chaperone/ebpf/sandbox"
)

// cachedConfinement makes a confinement whose programs go through the cache, in a content
// of the test's own.
func cachedConfinement(t *testing.T, content string) *Confinement {
	t.Helper()
	c, err := preloadFrom(t, content).New(Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// preloadFrom is Preload with a cache of the test's own.
func preloadFrom(t *testing.T, content string) *Preloaded {
	t.Helper()
	p := &Preloaded{own: true, loaded: make(chan struct{})}
	defer close(p.loaded)
	p.cache = testCache(t, content)
	if p.programs, p.refused = p.cache.take(false); p.programs == nil {
		if p.programs, p.err = p.load(); p.err != nil {
			t.Fatal(p.err)
		}
	}
	p.cache.shared = sorted(p.programs.pinnedMaps)
	return p
}

// testCache is a cache in a directory beside the one that sidecars use.
func testCache(t *testing.T, content string) *programCache {
	t.Helper()
	c, err := openProgramCache(t.TempDir(), true, false)
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(strings.NewReplacer("/", "_", ".", "_").Replace(t.Name()), " ")
	c.dir = filepath.Join(filepath.Dir(c.dir), "test_"+name)
	if err := sandbox.EnsurePrivate(c.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCache(t, c.dir) })
	c.key = content + strings.TrimPrefix(c.key, c.content)
	c.content = content
	return c
}

func removeCache(t *testing.T, dir string) {
	names, err := pinned(dir)
	for _, name := range names {
		_ = unpin(filepath.Join(dir, name))
	}
	if err == nil {
		_ = os.Remove(dir)
	}
}

func programID(t *testing.T, c *Confinement) uint32 {
	t.Helper()
	object, err := describeProgram("hooks", "egress", c.programs.base.Programs["egress"])
	if err != nil {
		t.Fatal(err)
	}
	return object.ID
}

func cachedNames(t *testing.T, c *Confinement) []string {
	t.Helper()
	names, err := pinned(c.cache.dir)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// use starts a program in a confinement that connects, is refused and opens files.
func use(t *testing.T, c *Confinement) {
	t.Helper()
	if err := c.Attach(Endpoints{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Limit([]Limit{{Kind: LimitConnections, Name: "some", Count: 7}, {Kind: LimitSentBytes, Name: "bytes", Count: 1 << 20}}); err != nil {
		t.Fatal(err)
	}
	c.Attribute(12345, 3)
	if err := c.AllowConnects(Destinations{Any: true}); err != nil {
		t.Fatal(err)
	}
	p, err := c.Start(sandbox.Command{Path: "/bin/bash", Args: []string{"bash", "-c", "exec 3<>/dev/tcp/192.0.2.1/80 || exec 3<>/dev/tcp/::1/80 || true; /bin/true"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
}

// A confinement takes the programs of the one before it, and finds in them no trace of it.
func TestProgramCache(t *testing.T) {
	needKernel(t)
	fresh := cachedConfinement(t, "content")
	first, want := programID(t, fresh), contents(t, fresh.programs)
	use(t, fresh)
	if maps.EqualFunc(contents(t, fresh.programs), want, bytes.Equal) {
		t.Fatal("the plugin left no trace in any map: the test attacks nothing")
	}
	if err := fresh.Close(); err != nil {
		t.Fatal(err)
	}
	if names := cachedNames(t, fresh); len(names) != 1 {
		t.Fatalf("the cache holds %q, want one set", names)
	}
	p := preloadFrom(t, "content")
	if p.refused != nil {
		t.Fatal(p.refused)
	}
	got := contents(t, p.programs)
	for name, value := range want {
		if !bytes.Equal(got[name], value) {
			t.Errorf("map %s differs from a new one", name)
		}
	}
	next, err := p.New(Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = next.Close() })
	if got := programID(t, next); got != first {
		t.Errorf("program %d is in use, want %d from the cache", got, first)
	}
	if names := cachedNames(t, next); len(names) != 0 {
		t.Errorf("the cache still holds %q, whose programs are in use", names)
	}
	use(t, next)
	usage, err := next.Usage()
	if err != nil || usage.Refused == 0 {
		t.Errorf("got %+v, %v, want refusals of this plugin", usage, err)
	}
}

// contents are the values of a set's maps, by name, but for those of storage, constants,
// events and the cgroup.
func contents(t *testing.T, w *collection) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	add := func(name string, m *ebpf.Map) {
		if slices.Contains([]ebpf.MapType{ebpf.SkStorage, ebpf.TaskStorage, ebpf.RingBuf}, m.Type()) {
			return
		}
		if strings.Contains(name, ".rodata") || strings.HasSuffix(name, cgroupMap) {
			return
		}
		var text []byte
		for key, err := m.NextKeyBytes(nil); ; key, err = m.NextKeyBytes(key) {
			if err != nil {
				t.Fatal(err)
			}
			if key == nil {
				break
			}
			value, err := valueOf(m, key)
			if err != nil {
				t.Fatalf("read map %s: %v", name, err)
			}
			text = append(append(text, key...), value...)
		}
		all[name] = text
	}
	for name, m := range w.pinnedMaps {
		add(name, m)
	}
	for owner, place := range w.objects() {
		for name, m := range (*place).Maps {
			if w.pinnedMaps[name] == nil {
				add(owner+name, m)
			}
		}
	}
	return all
}

func valueOf(m *ebpf.Map, key []byte) ([]byte, error) {
	if m.Type() != ebpf.PerCPUArray {
		return m.LookupBytes(key)
	}
	var values [][]byte
	err := m.Lookup(key, &values)
	return bytes.Join(values, nil), err
}

// Two confinements at once have a set each, and both sets are kept.
func TestProgramCacheOfTwo(t *testing.T) {
	needKernel(t)
	one, two := cachedConfinement(t, "content"), cachedConfinement(t, "content")
	use(t, one)
	if usage, err := two.Usage(); err != nil || usage.Refused != 0 || usage.Connections != 0 {
		t.Errorf("the other plugin's use is counted: %+v, %v", usage, err)
	}
	ids := []uint32{programID(t, one), programID(t, two)}
	var closing sync.WaitGroup
	for _, c := range []*Confinement{one, two} {
		closing.Go(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	closing.Wait()
	var again [2]*Confinement
	for i := range again {
		again[i] = cachedConfinement(t, "content")
	}
	got := []uint32{programID(t, again[0]), programID(t, again[1])}
	slices.Sort(ids)
	slices.Sort(got)
	if !slices.Equal(got, ids) {
		t.Errorf("programs %d are in use, want %d", got, ids)
	}
}

// A set that is not what was put there is refused and removed, and the programs are
// loaded.
func TestProgramCacheRefuses(t *testing.T) {
	needKernel(t)
	for name, tamper := range map[string]func(t *testing.T, set string){
		"another owner": func(t *testing.T, set string) { must(t, os.Chown(set, 12345, 12345)) },
		"another mode":  func(t *testing.T, set string) { must(t, os.Chmod(set, 0o777)) },
		"another program": func(t *testing.T, set string) {
			other := loadSendmsg4(t)
			pin := filepath.Join(set, programPin(0))
			must(t, os.Remove(pin))
			must(t, other.Pin(pin))
			must(t, other.Close())
		},
		"another map": func(t *testing.T, set string) {
			other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
			must(t, err)
			pin := filepath.Join(set, mapPin(0))
			must(t, os.Remove(pin))
			must(t, other.Pin(pin))
			must(t, other.Close())
		},
		"a pin too few": func(t *testing.T, set string) { must(t, os.Remove(filepath.Join(set, programPin(3)))) },
		"a pin too many": func(t *testing.T, set string) {
			must(t, os.Mkdir(filepath.Join(set, "more"), 0o700))
			t.Cleanup(func() { _ = os.Remove(filepath.Join(set, "more")) })
		},
		"no manifest": func(t *testing.T, set string) { must(t, os.Remove(filepath.Join(set, manifestPin))) },
		"another manifest": func(t *testing.T, set string) {
			pin := filepath.Join(set, manifestPin)
			m, err := readManifest(pin)
			must(t, err)
			m.Programs[0].Tag = "0123456789abcdef"
			must(t, os.Remove(pin))
			must(t, writeManifest(pin, m))
		},
		"another key": func(t *testing.T, set string) {
			pin := filepath.Join(set, manifestPin)
			m, err := readManifest(pin)
			must(t, err)
			m.Key = "other_" + m.Key
			must(t, os.Remove(pin))
			must(t, writeManifest(pin, m))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cachedConfinement(t, "content")
			id := programID(t, c)
			must(t, c.Close())
			names := cachedNames(t, c)
			if len(names) != 1 {
				t.Fatalf("the cache holds %q, want one set", names)
			}
			tamper(t, filepath.Join(c.cache.dir, names[0]))
			p := preloadFrom(t, "content")
			defer func() { must(t, p.Close()) }()
			if p.refused == nil {
				t.Error("the set is used")
			}
			object, err := describeProgram("hooks", "egress", p.programs.base.Programs["egress"])
			if err != nil || object.ID == id {
				t.Errorf("program %d is in use (%v), want another than %d", object.ID, err, id)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// loadSendmsg4 loads a program of the hooks for itself.
func loadSendmsg4(t *testing.T) *ebpf.Program {
	t.Helper()
	spec, err := loadHooks()
	must(t, err)
	var programs struct {
		Program *ebpf.Program `ebpf:"sendmsg4"`
	}
	must(t, spec.LoadAndAssign(&programs, nil))
	return programs.Program
}

// A directory that others may change is no cache.
func TestProgramCacheOfOthers(t *testing.T) {
	needKernel(t)
	c := cachedConfinement(t, "content")
	must(t, os.Chown(c.cache.dir, 12345, 12345))
	if err := sandbox.EnsurePrivate(c.cache.dir); err == nil {
		t.Error("a directory of another user's is trusted")
	}
}

// Sets of another version, and half a set, are left alone by the start and removed by the
// next end. The number of sets is bounded.
func TestProgramCacheBounds(t *testing.T) {
	needKernel(t)
	old := cachedConfinement(t, "older")
	must(t, old.Close())
	half := filepath.Join(old.cache.dir, "content_half"+unfinished)
	must(t, os.Mkdir(half, 0o700))
	var all []*Confinement
	for range cachedSets + 1 {
		all = append(all, cachedConfinement(t, "content"))
	}
	for _, c := range all {
		must(t, c.Close())
	}
	names := cachedNames(t, old)
	if len(names) != cachedSets || slices.ContainsFunc(names, func(name string) bool {
		return !strings.HasPrefix(name, "content") || strings.HasSuffix(name, unfinished)
	}) {
		t.Errorf("the cache holds %q, want %d sets of the content in use", names, cachedSets)
	}
}

// The description of a set leaves room for more programs.
func TestProgramCacheManifestFits(t *testing.T) {
	needKernel(t)
	c := cachedConfinement(t, "content")
	must(t, c.Close())
	names := cachedNames(t, c)
	m, err := readManifest(filepath.Join(c.cache.dir, names[0], manifestPin))
	must(t, err)
	text, err := json.Marshal(m)
	must(t, err)
	if len(text) > manifestSize/2 {
		t.Errorf("the manifest has %d bytes of %d", len(text), manifestSize)
	}
}
