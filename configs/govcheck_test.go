package configs

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/chaperone-proxy/chaperone/authz"
)

const governanceExamples = "../examples/governance"

// exampleFiles returns the documents of the example of a repository.
func exampleFiles(t *testing.T) (files []string) {
	t.Helper()
	err := filepath.WalkDir(governanceExamples, func(path string, _ os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".yaml") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestGovernanceExamples checks the example of a repository, and compares the JSON that
// would be signed with a golden file.
func TestGovernanceExamples(t *testing.T) {
	got, err := CheckWith(CheckOptions{Now: now, Recursive: true}, governanceExamples)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []Kind
	for _, d := range got.Documents {
		kinds = append(kinds, d.Kind)
	}
	slices.Sort(kinds)
	if want := []Kind{KindChecklist, KindExemption, KindGuardrail, KindManifest, KindRubric, KindTrust}; !slices.Equal(kinds, want) {
		t.Errorf("got %v, want %v", kinds, want)
	}
	var out strings.Builder
	for _, path := range exampleFiles(t) {
		root := parseFile(t, path)[0]
		if errs := validateDocument(t, root); len(errs) > 0 {
			t.Errorf("%s: the schema: %s", path, strings.Join(errs, "; "))
		}
		data := roundTrip(t, path)
		out.WriteString(strings.TrimPrefix(path, "../") + "\n" + string(data) + "\n")
	}
	const golden = "testdata/governance.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

// roundTrip reads a file of any kind, and returns its JSON, which reads as the same.
func roundTrip(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	switch kind := Kind(parseFile(t, path)[0].child("kind").text); kind {
	case KindGuardrail:
		return roundTripOf[GuardrailSpec](t, path, data)
	case KindManifest:
		return roundTripOf[PluginManifest](t, path, data)
	case KindExemption:
		return roundTripOf[GrantExemption](t, path, data)
	case KindRubric:
		return roundTripOf[RiskRubric](t, path, data)
	case KindTrust:
		return roundTripOf[TrustRoot](t, path, data)
	case KindChecklist:
		return roundTripOf[ComplianceChecklist](t, path, data)
	default:
		t.Fatalf("%s: no round trip of %s", path, kind)
	}
	return nil
}

func roundTripOf[S any](t *testing.T, path string, data []byte) []byte {
	t.Helper()
	object, err := ParseObject[S](path, data)
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := RenderObject(object)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseObject[S](path+".json", rendered)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(object, again, withoutOrigin()); diff != "" {
		t.Errorf("%s: want (-), got (+):\n%s", path, diff)
	}
	return rendered
}

// withoutOrigin ignores where a document was read.
func withoutOrigin() cmp.Option {
	return cmp.Options{cmp.Comparer(func(_, _ authz.Origin) bool { return true }), cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}, netip.AddrPort{}), cmpopts.EquateEmpty()}
}

// TestRenderObject renders any value of every kind and reads it back: nothing is lost, and
// the bytes are the same again.
func TestRenderObject(t *testing.T) {
	t.Run("grant", func(t *testing.T) { rapid.Check(t, renderAny[GrantSpec]) })
	t.Run("guardrail", func(t *testing.T) { rapid.Check(t, renderAny[GuardrailSpec]) })
	t.Run("sidecar", func(t *testing.T) { rapid.Check(t, renderAny[Sidecar]) })
	t.Run("manifest", func(t *testing.T) { rapid.Check(t, renderAny[PluginManifest]) })
	t.Run("exemption", func(t *testing.T) { rapid.Check(t, renderAny[GrantExemption]) })
	t.Run("rubric", func(t *testing.T) { rapid.Check(t, renderAny[RiskRubric]) })
	t.Run("trust", func(t *testing.T) { rapid.Check(t, renderAny[TrustRoot]) })
	t.Run("checklist", func(t *testing.T) { rapid.Check(t, renderAny[ComplianceChecklist]) })
}

func renderAny[S any](t *rapid.T) {
	var object Object[S]
	s := source{kind: object.kindOf()}
	if start, ok := s.allocate().(*Object[S]); ok {
		object = *start
	}
	object.Metadata.Name = "any"
	fill(t, reflect.ValueOf(&object.Spec).Elem(), "spec")
	data, err := RenderObject(&object)
	if err != nil {
		t.Fatal(err)
	}
	roots, errs := parseJSON("any.json", data)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	d := decoder{file: "any.json"}
	read, ok := s.allocate().(*Object[S])
	if d.value(roots[0], reflect.ValueOf(read).Elem(), ""); len(d.errs) > 0 || !ok {
		t.Fatalf("%v\n%s", d.errs, data)
	}
	read.APIVersion, read.Kind = "", ""
	if diff := cmp.Diff(object, *read, withoutOrigin()); diff != "" {
		t.Fatalf("want (-), got (+):\n%s", diff)
	}
	again, err := RenderObject(read)
	if err != nil || string(again) != string(data) {
		t.Fatalf("the bytes differ: %v\n%s\n%s", err, data, again)
	}
}

// fill gives v any value that a file can state.
func fill(t *rapid.T, v reflect.Value, label string) {
	texts := rapid.SampledFrom([]string{"a", "b.example", "sha256:00", `"quoted" \ <&>`, "ä\u2028", "true", "1"})
	if words := wordsOf(v.Type()); words != nil {
		word := rapid.SampledFrom(words).Draw(t, label)
		v.Set(reflect.ValueOf(word).Convert(v.Type()))
		return
	}
	switch p := v.Addr().Interface().(type) {
	case *Percent:
		*p = Percent(rapid.IntRange(1, 100000).Draw(t, label))
		return
	case *time.Time:
		*p = time.Unix(rapid.Int64Range(0, 4e9).Draw(t, label), rapid.Int64Range(0, 999).Draw(t, label)*1e6).UTC()
		return
	case *netip.Prefix:
		*p = netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.0/8", "2001:db8::/32"}).Draw(t, label))
		return
	case *netip.Addr:
		*p = netip.MustParseAddr("192.0.2.7")
		return
	case *netip.AddrPort:
		*p = netip.MustParseAddrPort("192.0.2.7:53")
		return
	case *authz.Duration:
		*p = authz.Duration(time.Duration(rapid.Int64Range(1, 1e6).Draw(t, label)) * time.Millisecond)
		return
	case *authz.Limit:
		*p = authz.Limit{Count: rapid.Uint64Range(1, 1e6).Draw(t, label), Period: rapid.SampledFrom([]time.Duration{0, time.Second}).Draw(t, label)}
		return
	case *authz.ByteLimit:
		*p = authz.ByteLimit{Count: rapid.Uint64Range(1, 1e6).Draw(t, label), Period: rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(t, label)}
		return
	case *authz.Size:
		*p = authz.Size(rapid.Uint64Range(1, 1<<40).Draw(t, label))
		return
	case *authz.Retention:
		*p = rapid.SampledFrom([]authz.Retention{authz.RetentionNone, "30d"}).Draw(t, label)
		return
	case *Address:
		*p = Address{"unix", "/run/x"}
		return
	case *User:
		*p = UserDynamic
		return
	case *AccessLog:
		*p = "stdout"
		return
	case *Service:
		if err := p.UnmarshalText([]byte("8080")); err != nil {
			t.Fatal(err)
		}
		return
	}
	fillKind(t, v, label, texts)
}

func fillKind(t *rapid.T, v reflect.Value, label string, texts *rapid.Generator[string]) {
	switch v.Kind() {
	case reflect.Struct:
		for _, f := range fieldsOf(v.Type()) {
			if f.required || rapid.Bool().Draw(t, f.name) {
				fill(t, v.FieldByIndex(f.index), f.name)
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), label)
	case reflect.Slice:
		n := rapid.IntRange(1, 2).Draw(t, label)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(t, v.Index(i), label)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		value := reflect.New(v.Type().Elem()).Elem()
		fill(t, value, label)
		v.SetMapIndex(reflect.ValueOf(texts.Draw(t, label)), value)
	case reflect.String:
		v.SetString(texts.Draw(t, label))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.Int64Range(0, 1<<30).Draw(t, label))
	case reflect.Uint16:
		v.SetUint(uint64(rapid.Uint16().Draw(t, label)))
	default:
		t.Fatalf("%s: fill has no value of %s", label, v.Type())
	}
}

// The rendered JSON of a kind has the fields that the type has, and no others.
func TestRenderStatesTheKind(t *testing.T) {
	data, err := RenderObject(&Object[TrustRoot]{APIVersion: "other", Kind: "Other", Metadata: Metadata{Name: "corp"}})
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ APIVersion, Kind string }
	if err := json.Unmarshal(data, &got); err != nil || got.APIVersion != APIVersion || got.Kind != string(KindTrust) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func FuzzParseObject(f *testing.F) {
	f.Add([]byte(minimalManifest), true)
	f.Add([]byte(`{"apiVersion":"chaperone.dev/v1alpha1","kind":"PluginManifest","metadata":{"name":"a"},"spec":{}}`), false)
	f.Fuzz(func(t *testing.T, data []byte, yaml bool) {
		name := "manifest.json"
		if yaml {
			name = "manifest.yaml"
		}
		object, err := ParseObject[PluginManifest](name, data)
		if err != nil {
			return
		}
		rendered, err := RenderObject(object)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseObject[PluginManifest]("again.json", rendered); err != nil {
			t.Fatalf("%v\n%s", err, rendered)
		}
	})
}
