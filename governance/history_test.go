package governance

import (
	"encoding/json"
	"fmt"
	unescape "html"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

const (
	nextDir   = "plugins/weather/1.4.1"
	twoHosts  = "hosts: [api.weather.example, everything.example]"
	oneHost   = "hosts: [api.weather.example]"
	stepError = "2.0.0 is required"
)

// next puts version 1.4.1, which asks for a host more and steps by a patch.
func (f *fixture) next() {
	f.t.Helper()
	text := strings.NewReplacer(oneHost, twoHosts, "version: 1.4.0", "version: 1.4.1").Replace(string(f.files[requestDir+"/"+FileManifest].Data))
	f.put(nextDir+"/"+FileManifest, []byte(text))
	payload, err := json.Marshal(grantcheck.Submission{
		Plugin: "weather", Version: "1.4.1", Manifest: dsse.Digest([]byte(text)),
		Artifact: grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Digest: artifactDigest}, IssuedAt: f.now.Add(-time.Minute),
	})
	f.check(err)
	f.sign(nextDir+"/"+FileSubmission, dsse.KindSubmission, payload, "dev@corp")
	f.files[nextDir+"/evidence/test.dsse.json"] = f.files[testFile]
}

// evaluateIn evaluates the request of a folder.
func (f *fixture) evaluateIn(dir string) *Evaluation {
	f.t.Helper()
	r, err := Open(f.files)
	f.check(err)
	q, err := r.Request(dir)
	f.check(err)
	e, err := r.Evaluate(f.t.Context(), q, f.now)
	f.check(err)
	return e
}

// TestForgedHistory: an author, who may write to the folders of the plugin's versions, changes
// what a new version is compared with. A wide step stays a wide one.
func TestForgedHistory(t *testing.T) {
	base := newFixture(t)
	base.issued()
	base.next()
	tests := []struct {
		name   string
		change func(f *fixture)
		dir    string
	}{
		{"unchanged", func(*fixture) {}, nextDir},
		{"the manifest in force is edited", func(f *fixture) { f.edit(requestDir+"/"+FileManifest, oneHost, twoHosts) }, nextDir},
		{"the manifest in force is removed", func(f *fixture) { delete(f.files, requestDir+"/"+FileManifest) }, nextDir},
		{"the manifest in force cannot be read", func(f *fixture) { f.put(requestDir+"/"+FileManifest, []byte("{")) }, nextDir},
		{"the submission in force is removed, the manifest edited", func(f *fixture) {
			delete(f.files, requestDir+"/"+FileSubmission)
			f.edit(requestDir+"/"+FileManifest, oneHost, twoHosts)
		}, nextDir},
		{"the version in force is submitted again with more", func(f *fixture) {
			f.edit(requestDir+"/"+FileManifest, oneHost, twoHosts)
			f.submit("dev@corp")
			delete(f.files, requestDir+"/"+FileDraft)
		}, requestDir},
		{"the grant of another version is put to those that were issued", func(f *fixture) {
			f.files[nextDir+"/issued/1.dsse.json"] = f.files[GrantFile("weather")]
		}, nextDir},
		{"the payload in force is the draft", func(f *fixture) {
			f.files[nextDir+"/"+FileDraft] = f.files[requestDir+"/"+FileDraft]
		}, nextDir},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := base.clone(t)
			test.change(f)
			e := f.evaluateIn(test.dir)
			if s := e.stage(stageEligibility); s.Done || len(s.Problems) == 0 {
				t.Errorf("stage 0 is done; differences %q, notes %q", e.Differences, e.Findings)
			}
			if s := StatusOf(e); s.Stage != stageEligibility {
				t.Errorf("the stage is %s", s.Stage)
			}
		})
	}
}

// TestDraftBeyondSupport: a draft that somebody wrote by hand ends no later than one that is
// composed.
func TestDraftBeyondSupport(t *testing.T) {
	f := newFixture(t)
	f.edit(requestDir+"/"+FileManifest, "  purpose:", "  support: {endOfSupport: 2026-12-20T00:00:00Z}\n  purpose:")
	f.submit("dev@corp")
	f.compose()
	for _, test := range []struct {
		name, want string
		change     func(*configs.GrantSpec)
	}{
		{"end", "support", func(s *configs.GrantSpec) { s.NotAfter = s.NotAfter.Add(30 * 24 * time.Hour) }},
		{"no warning", "renewBefore", func(s *configs.GrantSpec) { s.Binding.RenewBefore = time.Time{} }},
		{"late warning", "renewBefore", func(s *configs.GrantSpec) { s.Binding.RenewBefore = s.NotAfter }},
	} {
		f := f.clone(t)
		object, err := configs.ParseObject[configs.GrantSpec](FileDraft, f.files[requestDir+"/"+FileDraft].Data)
		f.check(err)
		test.change(&object.Spec)
		payload, err := configs.RenderObject(object)
		f.check(err)
		f.put(requestDir+"/"+FileDraft, payload)
		f.approve("security", "bo@corp", nil)
		f.approve("compliance", "cy@corp", nil)
		if _, err := f.issue(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: issued, or refused for another reason: %v", test.name, err)
		}
	}
}

// TestLeftOutStaysOut: a permission that a renewal left out returns neither by composing the
// grant again nor by a patch.
func TestLeftOutStaysOut(t *testing.T) {
	f := newFixture(t)
	f.edit(requestDir+"/"+FileManifest, "  permissions:\n", "  permissions:\n  - {id: tiles, reason: Shows tiles, to: {hosts: [tiles.weather.example]}, methods: [GET], paths: [/t/*], data: {classes: [public]}}\n")
	f.submit("dev@corp")
	approved := func() {
		f.approve("security", "bo@corp", nil)
		f.approve("compliance", "cy@corp", nil)
	}
	f.compose()
	approved()
	f.issued()
	f.now = f.now.Add(time.Hour)
	r, e, err := f.evaluate()
	f.check(err)
	payload, err := r.Renew(e, []string{"tiles"}, 0, f.now)
	f.check(err)
	f.put(requestDir+"/"+FileDraft, payload)
	approved()
	f.issued()

	f.now = f.now.Add(time.Hour)
	again := f.clone(t)
	again.compose()
	approvedAgain := again.evaluateIn(requestDir)
	if !slices.Equal(approvedAgain.Dropped, []string{"tiles"}) {
		t.Errorf("composed again, the grant leaves out %q", approvedAgain.Dropped)
	}
	// Version 1.4.1 asks for the same as 1.4.0 did.
	text := strings.Replace(string(f.files[requestDir+"/"+FileManifest].Data), "version: 1.4.0", "version: 1.4.1", 1)
	f.next()
	f.put(nextDir+"/"+FileManifest, []byte(text))
	e = f.evaluateIn(nextDir)
	if !slices.ContainsFunc(e.Differences, func(s string) bool { return strings.Contains(s, "tiles") }) || e.Class == "none" {
		t.Errorf("the returned permission is not a difference: %q, class %s", e.Differences, e.Class)
	}
}

// TestPacketShowsEverything: nothing that a manifest, credentials.yaml or the grant states is
// absent from what reviewers read before the bytes to sign.
func TestPacketShowsEverything(t *testing.T) {
	f := newFixture(t)
	f.put(requestDir+"/"+FileManifest, []byte(strings.NewReplacer(
		"methods: [GET], paths: [/v1/*], data: {classes: [public]}}",
		"methods: [GET], paths: [/v1/*], data: {classes: [public], retention: 77d}, credential: api, insecure: false, timeout: 78s, limits: {requests: 79/1m}, encodedSlash: allow, upgrades: [websocket], notAfter: 2027-01-01T00:00:00Z}\n"+
			"  credentials: [{name: api, kind: bearer, purpose: Reads the purse}]\n  limits: {requests: 80/1m}\n  sockets: [/run/hidden.sock]\n"+
			"  contacts: [{name: dev, webhook: \"https://hook.example/81\"}]\n  requires: {other: \">=8.2.0\"}\n  support: {migration: page-83}\n",
		artifactDigest+"\"}", artifactDigest+"\", command: [weather, --region=85]}",
		oneHost, "hosts: [api.weather.example], ports: [8443], addresses: [10.84.0.0/16], tls: {min: \"1.3\", originate: true}",
	).Replace(fixtureManifest)))
	f.command = []string{"weather", "--region=85"}
	f.put(requestDir+"/"+FileCredentials, []byte("credentials:\n- {name: api, vault: {path: secret/data/payroll}, inject: {header: X-Odd, value: \"Bearer {token}\"}}\n"))
	f.submit("dev@corp")
	r, e, err := f.evaluate()
	f.check(err)
	packet, err := r.Review(e)
	f.check(err)
	packet.Grant.Payload, packet.Problems, packet.Findings = "", nil, nil
	md, err := packet.Markdown()
	f.check(err)
	html, err := packet.HTML()
	f.check(err)
	for _, want := range []string{"77d", "78s", "PUT", "\"permission\":\"read\"", "79", "encodedSlash", "websocket", "2027-01-01", "80", "hidden.sock", "hook.example/81", "8.2.0", "page-83", "8443", "10.84.0.0", "1.3", "originate", "secret/data/payroll", "X-Odd", "Reads the purse", "--region=85"} {
		if !strings.Contains(md, want) || !strings.Contains(unescape.UnescapeString(html), want) {
			t.Errorf("the packet does not show %q:\n%s", want, md)
		}
	}
}

// TestOneBrokenFolder: the author of one folder does not hide the state of the others.
func TestOneBrokenFolder(t *testing.T) {
	f := newFixture(t)
	f.issued()
	f.put("plugins/other/1.0.0/"+FileManifest, []byte("{"))
	f.put("plugins/weather/broken/"+FileManifest, []byte("{"))
	r, err := Open(f.files)
	f.check(err)
	all, err := r.EvaluateAll(t.Context(), f.now)
	if len(all) != 1 || err == nil || !strings.Contains(err.Error(), "plugins/other/1.0.0") || !strings.Contains(err.Error(), "plugins/weather/broken") {
		t.Errorf("%d requests, %v", len(all), err)
	}
	reminders, err := r.Reminders(t.Context(), f.now, 180*24*time.Hour)
	if len(reminders) == 0 || err == nil {
		t.Errorf("reminders are %v, %v", reminders, err)
	}
}

// countingFS counts how often files are opened.
type countingFS struct {
	fstest.MapFS
	manifests *atomic.Int64
}

func (c countingFS) Open(name string) (fs.File, error) {
	if path.Base(name) == FileManifest {
		c.manifests.Add(1)
	}
	return c.MapFS.Open(name)
}

// TestManyVersions: the files that are read for a plugin grow with its versions, and not with
// their square.
func TestManyVersions(t *testing.T) {
	f := newFixture(t)
	f.issued()
	f.next()
	const versions = 20
	for i := range versions {
		dir := RequestDir("weather", fmt.Sprintf("1.5.%d", i))
		for _, name := range []string{FileManifest, FileSubmission, "evidence/test.dsse.json"} {
			f.files[dir+"/"+name] = f.files[nextDir+"/"+name]
		}
	}
	counted := countingFS{f.files, &atomic.Int64{}}
	r, err := Open(counted)
	f.check(err)
	all, err := r.EvaluateAll(t.Context(), f.now)
	f.check(err)
	if opened := counted.manifests.Load(); len(all) != versions+2 || opened > 3*(versions+2) {
		t.Errorf("%d requests, and %d manifests were opened", len(all), opened)
	}
}
