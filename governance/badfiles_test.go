package governance

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// edit replaces a text in a file; a text that is not there fails the test.
func (f *fixture) edit(name, before, after string) {
	f.t.Helper()
	data := f.files[name].Data
	if !bytes.Contains(data, []byte(before)) {
		f.t.Fatalf("%s lacks %q", name, before)
	}
	f.put(name, bytes.Replace(data, []byte(before), []byte(after), 1))
}

// badManifests are manifests that are not the one that was submitted, or attack the reader.
func badManifests() []badInput {
	const manifest = requestDir + "/" + FileManifest
	var out []badInput
	for name, test := range map[string]struct{ before, after, want string }{
		"wider path":               {"/v1/*", "/**", "submit again"},
		"other host":               {"api.weather.example", "evil.example", "submit again"},
		"other method":             {"[GET]", "[GET, POST]", "submit again"},
		"other artifact":           {"aaaaaaaa", "bbbbbbbb", "submit again"},
		"other kind of artifact":   {"kind: file", "kind: tree", "submit again"},
		"a comment":                {"spec:", "spec: # nothing", "submit again"},
		"a space":                  {"spec:", "spec: ", "submit again"},
		"other version":            {"version: 1.4.0", "version: 1.5.0", ""},
		"other plugin":             {"name: weather", "name: index", ""},
		"other kind":               {"PluginManifest", "PluginGrant", ""},
		"other API version":        {"v1alpha1", "v2", "is not known"},
		"unknown field":            {"vendor:", "vender:", "is not a field here"},
		"field twice":              {"  vendor: acme.example\n", "  vendor: acme.example\n  vendor: acme.example\n", ""},
		"an anchor":                {"vendor: acme.example", "vendor: &v acme.example", "anchors"},
		"an alias":                 {"vendor: acme.example", "vendor: *v", "aliases"},
		"a tag":                    {"vendor: acme.example", "vendor: !!str acme.example", "tags"},
		"a merge key":              {"  vendor: acme.example\n", "  <<: {vendor: acme.example}\n", ""},
		"a directive":              {"apiVersion", "%YAML 1.2\n---\napiVersion", "directives"},
		"a complex key":            {"  vendor: acme.example\n", "  ? vendor\n  : acme.example\n", ""},
		"a tab":                    {"  vendor", "\tvendor", ""},
		"two documents":            {"apiVersion", "apiVersion: x\n---\napiVersion", "documents"},
		"a number for a text":      {"vendor: acme.example", "vendor: 7", ""},
		"a list for a text":        {"vendor: acme.example", "vendor: [a]", ""},
		"a bad digest":             {"aaaaaaaa", "AAAAAAAA", ""},
		"a bare wildcard":          {"api.weather.example", "\"*\"", ""},
		"a never-list":             {"api.weather.example", "metadata.google.internal", ""},
		"a dot segment":            {"/v1/*", "/v1/../*", ""},
		"a ceiling":                {"[GET]", "[DELETE]", ""},
		"a host in another script": {"api.weather.example", "аpi.weather.example", ""},
		"a control character":      {"Shows the forecast\n", "\"Shows \\u001b[2J\"\n", ""},
		"no permission":            {"permissions:", "permissions: []\n  x:", ""},
		"credential without name":  {"data: {classes: [public]}", "credential: key", ""},
	} {
		out = append(out, badInput{"manifest: " + name, func(f *fixture) { f.edit(manifest, test.before, test.after) }, test.want})
	}
	return append(out,
		badInput{"manifest: deleted", func(f *fixture) { delete(f.files, manifest) }, "manifest.yaml"},
		badInput{"manifest: a link", func(f *fixture) {
			f.files[manifest] = &fstest.MapFile{Data: []byte("/etc/passwd"), Mode: fs.ModeSymlink}
		}, "not a regular file"},
		badInput{"manifest: huge", func(f *fixture) { f.put(manifest, bytes.Repeat([]byte("#"), maxFile+1)) }, "at most"},
		badInput{"manifest: deep", func(f *fixture) { f.put(manifest, []byte(strings.Repeat("[", 100_000))) }, ""},
		badInput{"manifest: not UTF-8", func(f *fixture) { f.put(manifest, append([]byte{0xff, 0xfe}, f.files[manifest].Data...)) }, ""},
		badInput{"manifest: with a zero byte", func(f *fixture) { f.put(manifest, append(f.files[manifest].Data, 0)) }, ""},
		badInput{"credentials: added", func(f *fixture) { f.put(requestDir+"/"+FileCredentials, []byte("credentials: [{name: x}]\n")) }, ""},
		badInput{"credentials: with rules", func(f *fixture) { f.put(requestDir+"/"+FileCredentials, []byte("rules: []\n")) }, ""},
		badInput{"credentials: with a binding", func(f *fixture) {
			f.put(requestDir+"/"+FileCredentials, []byte("notBefore: 2026-01-01T00:00:00Z\ncredentials: []\n"))
		}, ""},
		badInput{"credentials: leaves its frame", func(f *fixture) { f.put(requestDir+"/"+FileCredentials, []byte("x: 1\n---\napiVersion: y\n")) }, ""},
	)
}

// badDrafts are grants that are not the one that the inputs make.
func badDrafts() []badInput {
	const draft = requestDir + "/" + FileDraft
	var out []badInput
	for name, test := range map[string]struct{ before, after string }{
		"wider path":        {`"/v1/*"`, `"/**"`},
		"more methods":      {`["GET"]`, `["GET","POST"]`},
		"other host":        {"api.weather.example", "evil.example"},
		"other reason":      {"Shows the forecast on the card", "Shows the forecast on a card"},
		"ends later":        {`"notAfter":"2027`, `"notAfter":"2028`},
		"began in the past": {`"notBefore":"2026`, `"notBefore":"2025`},
		"next generation":   {`"generation":1`, `"generation":2`},
		"generation 0":      {`"generation":1`, `"generation":0`},
		"with a previous":   {`"generation":1`, `"previous":"` + artifactDigest + `","generation":1`},
		"other artifact":    {artifactDigest, strings.Replace(artifactDigest, "aaaa", "bbbb", 1)},
		"as an image":       {`"kind":"file"`, `"kind":"image"`},
		"other band":        {`"band":"low"`, `"band":"critical"`},
		"other plugin":      {`"plugin":"weather"`, `"plugin":"index"`},
		"other name":        {`"name":"weather"`, `"name":"index"`},
		"limits":            {`"notBefore"`, `"limits":{"requests":"1/1m"},"notBefore"`},
		"sockets":           {`"notBefore"`, `"sockets":["/run/x.sock"],"notBefore"`},
		"unknown field":     {`"notBefore"`, `"x":1,"notBefore"`},
		"field twice":       {`"notBefore"`, `"plugin":"weather","notBefore"`},
		"other API version": {"v1alpha1", "v1"},
		"white space":       {`"spec":`, `"spec": `},
		"renewal never":     {`"renewBefore"`, `"renewbefore"`},
	} {
		out = append(out, badInput{"grant.json: " + name, func(f *fixture) { f.edit(draft, test.before, test.after) }, ""})
	}
	return append(out,
		badInput{"grant.json: of a manifest with one permission less", func(f *fixture) {
			f.put(requestDir+"/"+FileManifest, []byte(strings.Replace(fixtureManifest, "  permissions:\n", "  permissions:\n  - {id: tiles, reason: Shows tiles, to: {hosts: [tiles.weather.example]}, methods: [GET], paths: [/t/*], data: {classes: [public]}}\n", 1)))
			f.submit("dev@corp")
		}, "moved"},
		badInput{"grant.json: deleted", func(f *fixture) { delete(f.files, draft) }, "no grant is composed yet"},
		badInput{"grant.json: composed again", func(f *fixture) { f.now = f.now.Add(time.Minute); f.compose() }, "its grant is"},
		badInput{"grant.json: a link", func(f *fixture) {
			f.files[draft] = &fstest.MapFile{Data: []byte("x"), Mode: fs.ModeSymlink}
		}, "not a regular file"},
		badInput{"grant.json: without a binding", func(f *fixture) {
			var doc map[string]any
			f.check(json.Unmarshal(f.files[draft].Data, &doc))
			spec, _ := doc["spec"].(map[string]any)
			delete(spec, "binding")
			data, err := json.Marshal(doc)
			f.check(err)
			f.put(draft, data)
		}, "no spec.binding"},
		badInput{"grant.json: after its end", func(f *fixture) { f.now = f.now.Add(200 * 24 * time.Hour) }, ""},
		badInput{"a rotten test result", func(f *fixture) { f.now = f.now.Add(31 * 24 * time.Hour) }, "too old"},
	)
}

// badReviews are documents that were signed rightly, after or beside what was reviewed.
func badReviews() []badInput {
	out := []badInput{
		{"evidence added", func(f *fixture) {
			f.files[requestDir+"/evidence/more.dsse.json"] = f.files[testFile]
			f.test("scan@corp", f.now.Add(-time.Minute))
			f.files[requestDir+"/evidence/more.dsse.json"], f.files[testFile] = f.files[testFile], f.files[requestDir+"/evidence/more.dsse.json"]
		}, "evidence moved"},
		{"evidence replaced", func(f *fixture) { f.test("scan@corp", f.now.Add(-time.Minute)) }, "evidence moved"},
		{"evidence of another artifact", func(f *fixture) { f.testOf("scan@corp", dsse.Digest([]byte("x")), f.now) }, "scan that one"},
		{"evidence of the future", func(f *fixture) { f.test("scan@corp", f.now.Add(time.Hour)) }, "in the future"},
		{"submitted again", func(f *fixture) {
			f.now = f.now.Add(-time.Minute)
			f.submit("dev@corp")
			f.now = f.now.Add(time.Minute)
		}, "submission moved"},
		{"submitted by another author", func(f *fixture) { f.submit("bo@corp") }, "too few identities"},
		{"guardrail removed from another plugin", func(f *fixture) {
			f.document("guardrails/company.dsse.json", strings.Replace(fixtureGuardrail, `["**"]`, "[index]", 1), "ana@corp")
		}, "no signed guardrail applies"},
		{"second guardrail", func(f *fixture) {
			f.document("guardrails/more.dsse.json", strings.Replace(fixtureGuardrail, "name: company", "name: more", 1), "ana@corp")
		}, "guardrail moved"},
		{"second exemption", func(f *fixture) {
			f.document("exemptions/more.dsse.json", strings.Replace(fixtureExemption, "name: ex-1", "name: ex-2", 1), "ana@corp")
		}, "exemption moved"},
		{"exemption of one name twice", func(f *fixture) {
			f.document("exemptions/more.dsse.json", strings.Replace(fixtureExemption, "SEC-1", "SEC-2", 1), "ana@corp")
		}, "names are unique"},
		{"exemption replaced", func(f *fixture) {
			f.document("exemptions/ex-1.dsse.json", strings.Replace(fixtureExemption, "SEC-1", "SEC-2", 1), "ana@corp")
		}, "exemption moved"},
		{"exemption ended", func(f *fixture) {
			f.document("exemptions/ex-1.dsse.json", strings.Replace(fixtureExemption, "2027-01", "2026-01", 1), "ana@corp")
		}, "moved"},
	}
	for name, test := range map[string]struct{ before, after string }{
		"lifetime longer":        {"low: 90d", "low: 180d"},
		"ceiling raised":         {"methods: [GET, POST]", "methods: [GET, POST, PUT]"},
		"never-list dropped":     {"  never:\n  - {id: metadata, hosts: [metadata.google.internal]}\n", ""},
		"approvals dropped":      {"low: {roles: [{name: security, min: 1}, {name: compliance, min: 1}]}", "low: {roles: []}"},
		"approvals fewer":        {"low: {roles: [{name: security, min: 1}, {name: compliance, min: 1}]}", "low: {roles: [{name: security, min: 1}]}"},
		"approvals more":         {"low: {roles: [{name: security, min: 1}", "low: {roles: [{name: security, min: 2}"},
		"evidence not demanded":  {"  evidence:\n  - {predicateType: https://chaperone.dev/attestation/test-result/v1, role: scanner, maxAge: 30d}\n", ""},
		"evidence of a role":     {"role: scanner", "role: measurer"},
		"band without approvals": {"    low: {roles: [{name: security, min: 1}, {name: compliance, min: 1}]}\n", ""},
	} {
		out = append(out, badInput{"guardrail signed again: " + name, func(f *fixture) {
			f.document("guardrails/company.dsse.json", strings.Replace(fixtureGuardrail, test.before, test.after, 1), "ana@corp")
		}, ""})
	}
	for name, spec := range map[string]string{
		"everything is low":       "{generation: 1, bands: {moderate: 98, high: 99, critical: 100}}",
		"nothing counts":          "{generation: 1, caps: {exposure: 0, vulnerabilities: 0, provenance: 0, behaviour: 0, compliance: 0}}",
		"the defaults":            "{generation: 1}",
		"only another generation": "{generation: 2, vulnerabilities: {staleScan: 0}, provenance: {none: 0, sbomMissing: 0}, behaviour: {mediation: 0}, compliance: {staleChecklist: 0}}",
	} {
		out = append(out, badInput{"rubric signed again: " + name, func(f *fixture) {
			f.document(FileRubric, "apiVersion: chaperone.dev/v1alpha1\nkind: RiskRubric\nmetadata: {name: default}\nspec: "+spec+"\n", "ana@corp")
		}, ""})
	}
	return out
}

// badTrust are trust roots that are not to be trusted.
func badTrust() []badInput {
	var out []badInput
	for name, test := range map[string]struct{ before, after, want string }{
		"not JSON":             {"{", "", ""},
		"other kind":           {"TrustRoot", "PluginGuardrail", ""},
		"version 0":            {`"version":1`, `"version":0`, ""},
		"unknown kind":         {`"kinds":["submission","evidence"]`, `"kinds":["submission","gift"]`, ""},
		"kind of the root":     {`"kinds":["submission","evidence"]`, `"kinds":["submission","trust"]`, "signed by role root alone"},
		"role twice":           {`"name":"author"`, `"name":"policy"`, "name of another role"},
		"no role root":         {`"name":"root"`, `"name":"boot"`, ""},
		"key cut short":        {`"ed25519":"`, `"ed25519":"AA`, ""},
		"identity with spaces": {"ana@corp", "ana @corp", "has no identity"},
		"one key of two":       {`"identity":"bo@corp"`, `"identity":"zed@corp"`, "belongs to"},
		"unknown field":        {`"version":1`, `"version":1,"x":1`, ""},
		"field twice":          {`"version":1`, `"version":1,"version":2`, ""},
	} {
		out = append(out, badInput{"trust.yaml: " + name, func(f *fixture) { f.edit(FileTrust, test.before, test.after) }, test.want})
	}
	rotate := func(f *fixture, name string, version int64, identities ...string) {
		spec := f.spec
		spec.Version = version
		payload, err := json.Marshal(spec)
		f.check(err)
		f.sign(name, dsse.KindTrust, payload, identities...)
	}
	return append(out,
		badInput{"trust.yaml: deleted", func(f *fixture) { delete(f.files, FileTrust) }, "trust init"},
		badInput{"trust.yaml: a link", func(f *fixture) {
			f.files[FileTrust] = &fstest.MapFile{Data: []byte("/etc/x"), Mode: fs.ModeSymlink}
		}, "not a regular file"},
		badInput{"trust.yaml: other keys", func(f *fixture) {
			roles := slices.Clone(f.spec.Roles)
			for i := range roles {
				roles[i].Keys = nil
			}
			f.trust(configs.TrustRoot{Version: 1, Roles: withSpare(f, roles)})
		}, ""},
		badInput{"rotation by a stranger", func(f *fixture) { rotate(f, "trust.2.dsse.json", 2, "eve@corp") }, "too few identities"},
		badInput{"rotation by the author", func(f *fixture) { rotate(f, "trust.2.dsse.json", 2, "dev@corp") }, "too few identities"},
		badInput{"rotation to the same version", func(f *fixture) { rotate(f, "trust.2.dsse.json", 1, "ana@corp") }, "follows"},
		badInput{"rotation that leaves one out", func(f *fixture) { rotate(f, "trust.2.dsse.json", 3, "ana@corp") }, "follows"},
		badInput{"rotation 3 without 2", func(f *fixture) { rotate(f, "trust.3.dsse.json", 2, "ana@corp") }, "is not"},
		badInput{"rotation with a zero", func(f *fixture) { rotate(f, "trust.02.dsse.json", 2, "ana@corp") }, "is not the version"},
		badInput{"rotation x", func(f *fixture) { rotate(f, "trust.x.dsse.json", 2, "ana@corp") }, "is not the version"},
	)
}

// badFolders are attacks by what is in folders.
func badFolders() []badInput {
	link := func(name string) func(f *fixture) {
		return func(f *fixture) {
			for file := range f.files {
				if strings.HasPrefix(file, name+"/") {
					delete(f.files, file)
				}
			}
			f.files[name] = &fstest.MapFile{Data: []byte("/etc"), Mode: fs.ModeSymlink}
		}
	}
	var out []badInput
	for _, dir := range []string{"guardrails", "exemptions", requestDir + "/evidence", requestDir + "/approvals", requestDir, "plugins/weather", "plugins"} {
		out = append(out, badInput{"a link in the place of " + dir, link(dir), ""})
	}
	for _, dir := range []string{"guardrails", "exemptions", requestDir + "/evidence", requestDir + "/approvals", "."} {
		out = append(out, badInput{"too many files in " + dir, func(f *fixture) {
			for i := range maxEntries + 1 {
				f.put(path.Join(dir, strings.Repeat("a", i%50+1)+dsse.Digest([]byte{byte(i), byte(i >> 8)})[7:20]+".txt"), nil)
			}
		}, "more than"})
	}
	return out
}

// TestBadInputs has more than 300 repositories in which one thing is wrong: no grant is issued.
func TestBadInputs(t *testing.T) {
	base := newFixture(t)
	if _, err := base.issue(); err != nil {
		t.Fatalf("the repository that everything is a change of is refused: %v", err)
	}
	var all []badInput
	for _, some := range [][]badInput{badSignatures(base), badApprovals(), badManifests(), badDrafts(), badReviews(), badTrust(), badFolders()} {
		all = append(all, some...)
	}
	const least = 300
	if len(all) < least {
		t.Errorf("got %d bad inputs, want at least %d", len(all), least)
	}
	accepted := 0
	for _, bad := range all {
		f := base.clone(t)
		bad.change(f)
		switch _, err := f.issue(); {
		case err == nil:
			accepted++
			t.Errorf("%s: accepted", bad.name)
		case !strings.Contains(err.Error(), bad.want):
			t.Errorf("%s: the reason is %v, want %q", bad.name, err, bad.want)
		}
	}
	t.Logf("%d bad inputs, %d accepted", len(all), accepted)
}

// TestFoldersOfRequests refuses paths that are not those of a request.
func TestFoldersOfRequests(t *testing.T) {
	f := newFixture(t)
	r, err := Open(f.files)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{
		"", ".", "..", "/", "plugins", "plugins/weather", "plugins/weather/", "/plugins/weather/1.4.0", "plugins/weather/1.4.0/", "plugins/../plugins/weather/1.4.0",
		"plugins/weather/../weather/1.4.0", "plugins/weather/1.4.0/evidence", "guardrails/weather/1.4.0", "plugins/WEATHER/1.4.0", "plugins/we ather/1.4.0",
		"plugins/weather/..", "plugins/weather/.", "plugins//1.4.0", "plugins/weather\x00/1.4.0", `plugins\weather\1.4.0`,
	} {
		if _, err := r.Request(dir); err == nil {
			t.Errorf("%q was read as the folder of a request", dir)
		}
	}
}
