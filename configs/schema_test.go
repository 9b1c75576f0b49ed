package configs

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/invopop/jsonschema"

	"github.com/chaperone-proxy/chaperone/authz"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
)

// TestSchemas keeps the committed schemas true to the Go types.
func TestSchemas(t *testing.T) {
	all := map[string]string{}
	for _, kind := range Kinds() {
		want := generate(t, kind)
		all[string(kind)] = string(want)
		path := "schema/" + string(kind) + ".json"
		if *update {
			if err := os.WriteFile(path, want, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s is not what the types say (-), run go generate ./configs:\n%s", path, diff)
		}
	}
	if *update {
		writeSchemas(t, all)
		return // the program holds the former ones
	}
	for kind, want := range all {
		if got, err := Schema(kind); err != nil || string(got) != want {
			t.Errorf("%s in schema/all.json.gz is not what the types say (%v), run go generate ./configs", kind, err)
		}
	}
	if _, err := Schema("Pod"); err == nil || !strings.Contains(err.Error(), "PluginGuardrail") {
		t.Errorf("got %v for an unknown kind, want an error that names the kinds", err)
	}
}

// writeSchemas writes the schemas as programs carry them.
func writeSchemas(t *testing.T, all map[string]string) {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err == nil {
		err = json.NewEncoder(w).Encode(all)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = os.WriteFile("schema/all.json.gz", out.Bytes(), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// generate returns the schema of a kind.
func generate(t *testing.T, kind Kind) []byte {
	t.Helper()
	r := &jsonschema.Reflector{
		Anonymous: true, ExpandedStruct: true, Mapper: mapType,
		Namer: func(t reflect.Type) string { return t.Name() },
	}
	const module = "github.com/chaperone-proxy/chaperone/configs"
	for _, dir := range []string{".", "../authz", "../internal/dsse", "../governance/grantcheck"} {
		if err := r.AddGoComments(module, dir, jsonschema.WithFullComment()); err != nil {
			t.Fatal(err)
		}
	}
	var schema *jsonschema.Schema
	switch kind {
	case KindSidecar:
		schema = r.Reflect(Object[Sidecar]{})
	case KindGrant:
		schema = r.Reflect(Object[GrantSpec]{})
	case KindGuardrail:
		schema = r.Reflect(Object[GuardrailSpec]{})
		// A ceiling narrows, so it may name schemes of later versions.
		ceiling, _ := schema.Definitions["Ceilings"].Properties.Get("schemes")
		ceiling.Items.Enum = append(ceiling.Items.Enum, "mysql")
	case KindTest:
		schema = r.Reflect(Object[PluginTest]{})
	case KindManifest:
		schema = r.Reflect(Object[PluginManifest]{})
	case KindExemption:
		schema = r.Reflect(Object[GrantExemption]{})
	case KindRubric:
		schema = r.Reflect(Object[RiskRubric]{})
	case KindTrust:
		schema = r.Reflect(Object[TrustRoot]{})
	case KindChecklist:
		schema = r.Reflect(Object[ComplianceChecklist]{})
	}
	schema.ID = jsonschema.ID("https://chaperone.dev/schema/v1alpha1/" + string(kind) + ".json")
	schema.Title = string(kind)
	schema.Properties.Set("apiVersion", &jsonschema.Schema{Const: APIVersion})
	schema.Properties.Set("kind", &jsonschema.Schema{Const: kind})
	tidy(schema)
	data, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(data, '\n')
}

// tidy gives descriptions the form they have outside Go.
func tidy(s *jsonschema.Schema) {
	s.Description = strings.NewReplacer("\n", " ", "[", "", "]", "").Replace(s.Description)
	for _, d := range s.Definitions {
		tidy(d)
	}
	if s.Properties != nil {
		for p := s.Properties.Oldest(); p != nil; p = p.Next() {
			tidy(p.Value)
			if first, rest, _ := strings.Cut(p.Value.Description, " "); strings.EqualFold(first, p.Key) {
				p.Value.Description = p.Key + " " + rest
			}
		}
	}
}

const (
	durationPattern = `[1-9][0-9]*(ms|s|m|h|d)`
	sizePattern     = `[1-9][0-9]*(KiB|MiB|GiB|KB|MB|GB)?`
)

// mapType returns the schema of types that read themselves, and of words.
func mapType(t reflect.Type) *jsonschema.Schema {
	text := func(pattern string, examples ...any) *jsonschema.Schema {
		return &jsonschema.Schema{Type: "string", Pattern: pattern, Examples: examples}
	}
	orNumber := func(s *jsonschema.Schema) *jsonschema.Schema {
		return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{s, {Type: "integer", Minimum: "0"}}}
	}
	switch t {
	case reflect.TypeFor[authz.Duration]():
		return text("^"+durationPattern+"$", "10s", "30d")
	case reflect.TypeFor[authz.Size]():
		return orNumber(text("^"+sizePattern+"$", "256MiB"))
	case reflect.TypeFor[authz.Limit]():
		return orNumber(text("^[1-9][0-9]*(/"+durationPattern+")?$", "100/1m", "5000"))
	case reflect.TypeFor[authz.ByteLimit]():
		return orNumber(text("^"+sizePattern+"(/"+durationPattern+")?$", "10MiB/1m", "5GiB"))
	case reflect.TypeFor[netip.Prefix]():
		return text("", "203.0.113.0/24")
	case reflect.TypeFor[netip.Addr]():
		return text("", "192.0.2.7")
	case reflect.TypeFor[netip.AddrPort]():
		return text(":[0-9]+$", "10.0.0.2:53")
	case reflect.TypeFor[Address]():
		return text(`^unix:.|:[0-9]+$`, "127.0.0.1:15001", "unix:/run/chaperone/weather/admin.sock")
	case reflect.TypeFor[AccessLog]():
		return text(`^(stdout|off|/.*)$`, "stdout", "off", "/var/log/envoy/weather.log")
	case reflect.TypeFor[User]():
		return orNumber(text("", "dynamic"))
	case reflect.TypeFor[authz.Retention]():
		return text("^(none|"+durationPattern+")$", "none", "30d")
	case reflect.TypeFor[Percent]():
		return text(`^[0-9]+(\.[0-9]{1,2})?%$`, "10%", "99.99%")
	case reflect.TypeFor[authz.DatabaseName]():
		return orNumber(text("", "shop"))
	case reflect.TypeFor[Service]():
		return orNumber(text("^unix:/.*[^/]$", "unix:/tmp/plugin*"))
	}
	if words := wordsOf(t); words != nil {
		return &jsonschema.Schema{Type: "string", Enum: words}
	}
	return nil
}

// wordsOf returns the values of a type that has a few.
func wordsOf(t reflect.Type) []any {
	switch t {
	case reflect.TypeFor[authz.Scheme]():
		return []any{authz.SchemeHTTPS, authz.SchemeHTTP, authz.SchemeTLS, authz.SchemeTCP, authz.SchemePostgres, authz.SchemeRedis}
	case reflect.TypeFor[authz.Mode]():
		return []any{authz.ModeEnforce, authz.ModeObserve}
	case reflect.TypeFor[authz.Opaque]():
		return []any{authz.OpaqueDeny, authz.OpaqueAllow}
	case reflect.TypeFor[authz.OnExceeded]():
		return []any{authz.OnExceededDeny, authz.OnExceededThrottle, authz.OnExceededStop, authz.OnExceededKill}
	case reflect.TypeFor[authz.CountSyscalls]():
		return []any{authz.CountWhenNear, authz.CountExact}
	case reflect.TypeFor[authz.WildcardHosts]():
		return []any{authz.WildcardNone, authz.WildcardSingle, authz.WildcardAny}
	case reflect.TypeFor[Kernel]():
		return []any{KernelRequired, KernelPreferred, KernelOff}
	case reflect.TypeFor[Network]():
		return []any{NetworkOwn, NetworkHost}
	case reflect.TypeFor[LogLevel]():
		return []any{LogDebug, LogInfo, LogWarn, LogError}
	case reflect.TypeFor[View]():
		return []any{ViewOwn, ViewHost}
	case reflect.TypeFor[OnBadReload]():
		return []any{OnBadReloadKeep, OnBadReloadQuarantine}
	case reflect.TypeFor[VaultMethod]():
		return []any{VaultAppRole, VaultKubernetes, VaultJWT, VaultCert, VaultToken}
	case reflect.TypeFor[TestDoor]():
		return []any{TestDoorProxy, TestDoorEnvoy, TestDoorExtAuthz, TestDoorPlain}
	case reflect.TypeFor[authz.DataClass]():
		return []any{authz.DataPublic, authz.DataInternal, authz.DataConfidential, authz.DataRestricted}
	case reflect.TypeFor[authz.Level]():
		return []any{authz.LevelPause, authz.LevelQuarantine, authz.LevelHalt}
	case reflect.TypeFor[Band]():
		return []any{BandLow, BandModerate, BandHigh, BandCritical}
	case reflect.TypeFor[ContainmentAction]():
		return []any{ContainPause, ContainQuarantine, ContainStop}
	case reflect.TypeFor[Severity]():
		return []any{SeverityNone, SeverityLow, SeverityMedium, SeverityHigh, SeverityCritical}
	case reflect.TypeFor[grantcheck.ArtifactKind]():
		return []any{grantcheck.ArtifactFile, grantcheck.ArtifactTree, grantcheck.ArtifactImage}
	case reflect.TypeFor[CredentialKind]():
		return []any{CredentialBearer, CredentialHeader, CredentialQuery, CredentialCookie, CredentialBasic, CredentialMTLS, CredentialSigV4, CredentialOAuth2, CredentialJWT, CredentialDatabase}
	case reflect.TypeFor[Proof]():
		return []any{ProofAuto, ProofAttested}
	case reflect.TypeFor[AuditPaths]():
		return []any{AuditPathsMasked, AuditPathsFull}
	}
	return nil
}

// TestSchemasAgree validates documents against the committed schemas: what
// loads is valid, and the slips that editors should show are not.
func TestSchemasAgree(t *testing.T) {
	good, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(good, "example.yaml") {
		for i, root := range parseFile(t, path) {
			if errs := validateDocument(t, root); len(errs) > 0 {
				t.Errorf("%s, document %d: %s", path, i+1, strings.Join(errs, "; "))
			}
		}
	}
	for _, slip := range []string{
		"field-unknown", "field-missing", "field-empty", "type-list", "type-text", "type-bool", "type-mapping", "type-version",
		"unit-duration", "unit-limit", "not-yet-schemes", "grant-tokens", "sidecar-enums", "sidecar-required",
		"api-version", "metadata-missing",
	} {
		t.Run(slip, func(t *testing.T) {
			full, err := filepath.Abs(filepath.Join("testdata/bad", slip+".txtar"))
			if err != nil {
				t.Fatal(err)
			}
			unpack(t, full)
			for _, name := range []string{"sidecar.yaml", "grant.yaml"} {
				if !exists(name) {
					continue
				}
				if errs := validateDocument(t, parseFile(t, name)[0]); len(errs) == 0 {
					t.Error("the schema finds nothing wrong")
				}
				return
			}
		})
	}
}

func parseFile(t *testing.T, path string) []*node {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	roots, errs := parseYAML(path, data)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return roots
}

func validateDocument(t *testing.T, root *node) []string {
	t.Helper()
	data, err := Schema(root.child("kind").text)
	if err != nil {
		t.Fatal(err)
	}
	schema := map[string]any{}
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	v := validator{root: schema}
	v.check(root, schema, "")
	return v.errs
}

// validator implements the part of JSON Schema that the schemas use, and fails on any
// other keyword.
type validator struct {
	root map[string]any
	errs []string
}

func (v *validator) fail(path, format string, args ...any) {
	v.errs = append(v.errs, path+": "+fmt.Sprintf(format, args...))
}

func (v *validator) check(n *node, schema map[string]any, path string) {
	if ref, ok := schema["$ref"].(string); ok {
		definitions, _ := v.root["$defs"].(map[string]any)
		schema, _ = definitions[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
	}
	for keyword, value := range schema {
		switch keyword {
		case "type":
			types := map[string]kind{"string": textKind, "integer": numberKind, "boolean": boolKind, "array": sequenceKind, "object": mappingKind}
			if n.kind != types[value.(string)] {
				v.fail(path, "is %s, not %s", n.kind, value)
			}
		case "const":
			if n.text != value {
				v.fail(path, "is not %v", value)
			}
		case "enum":
			if !slices.Contains(value.([]any), any(n.text)) {
				v.fail(path, "%q is not among %v", n.text, value)
			}
		case "pattern":
			if !regexp.MustCompile(value.(string)).MatchString(n.text) {
				v.fail(path, "%q does not match %s", n.text, value)
			}
		case "anyOf":
			v.anyOf(n, value.([]any), path)
		case "items":
			for i, item := range n.items {
				v.check(item, value.(map[string]any), at(path, i))
			}
		case "required":
			for _, name := range value.([]any) {
				if n.child(name.(string)) == nil {
					v.fail(path, "lacks %s", name)
				}
			}
		case "additionalProperties":
			v.fields(n, schema, path)
		case "properties", "$schema", "$id", "$defs", "title", "description", "examples", "format", "minimum", "maximum", "$ref":
		default:
			v.fail(path, "this validator does not know %s", keyword)
		}
	}
}

func (v *validator) anyOf(n *node, options []any, path string) {
	for _, option := range options {
		try := validator{root: v.root}
		if try.check(n, option.(map[string]any), path); len(try.errs) == 0 {
			return
		}
	}
	v.fail(path, "is none of %v", options)
}

func (v *validator) fields(n *node, schema map[string]any, path string) {
	properties, _ := schema["properties"].(map[string]any)
	for _, f := range n.fields {
		property, known := properties[f.key].(map[string]any)
		other, ok := schema["additionalProperties"].(map[string]any)
		switch {
		case known:
			v.check(f.value, property, join(path, f.key))
		case ok:
			v.check(f.value, other, join(path, f.key))
		default:
			v.fail(path, "%s is not allowed", f.key)
		}
	}
}
