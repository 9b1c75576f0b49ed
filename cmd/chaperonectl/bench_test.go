package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/governance/evidence"
	"github.com/chaperone-proxy/chaperone/governance/grantcheck"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

const benchRequests = 1000

var benchNow = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// benchRepo makes a repository of 1,000 requests, each with a submission, a scan with ten
// findings and a bill of materials.
func benchRepo(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	key, err := dsse.GenerateKey()
	if err != nil {
		b.Fatal(err)
	}
	other, err := dsse.GenerateKey()
	if err != nil {
		b.Fatal(err)
	}
	put := func(name string, data []byte) {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	seal := func(name string, kind dsse.Kind, payload []byte, k dsse.PrivateKey) {
		e, err := dsse.Sign(b.Context(), kind, payload, k)
		if err != nil {
			b.Fatal(err)
		}
		put(name, e.Marshal())
	}
	public := func(k dsse.PrivateKey) string { return base64.StdEncoding.EncodeToString(k.Public()) }
	put("trust.yaml", fmt.Appendf(nil, `apiVersion: chaperone.dev/v1alpha1
kind: TrustRoot
metadata: {name: corp}
spec:
  version: 1
  roles:
  - {name: root, kinds: [trust], keys: [{identity: ana, ed25519: "%[1]s"}]}
  - {name: policy, kinds: [guardrail, rubric], keys: [{identity: ana, ed25519: "%[1]s"}]}
  - {name: scanner, kinds: [evidence], predicateTypes: [%[3]q, %[4]q], keys: [{identity: ana, ed25519: "%[1]s"}]}
  - {name: author, kinds: [submission], keys: [{identity: dev, ed25519: "%[2]s"}]}
`, public(key), public(other), evidence.TypeFindings, evidence.TypeSBOM))
	signYAML(b, "rubric.yaml", []byte("apiVersion: chaperone.dev/v1alpha1\nkind: RiskRubric\nmetadata: {name: default}\nspec: {generation: 1}\n"),
		func(payload []byte) { seal("rubric.dsse.json", dsse.KindRubric, payload, key) })
	for i := range benchRequests {
		benchRequest(b, i, put, func(name string, kind dsse.Kind, payload []byte) {
			k := key
			if kind == dsse.KindSubmission {
				k = other
			}
			seal(name, kind, payload, k)
		})
	}
	return dir
}

func signYAML(b *testing.B, name string, data []byte, sign func([]byte)) {
	b.Helper()
	object, err := configs.ParseObject[configs.RiskRubric](name, data)
	if err != nil {
		b.Fatal(err)
	}
	payload, err := configs.RenderObject(object)
	if err != nil {
		b.Fatal(err)
	}
	sign(payload)
}

func benchRequest(b *testing.B, i int, put func(string, []byte), seal func(string, dsse.Kind, []byte)) {
	b.Helper()
	plugin, folder := fmt.Sprintf("plugin-%04d", i), fmt.Sprintf("plugins/plugin-%04d/1.0.0/", i)
	artifact := dsse.Digest([]byte(plugin))
	manifest := fmt.Appendf(nil, `apiVersion: chaperone.dev/v1alpha1
kind: PluginManifest
metadata: {name: %s}
spec:
  version: 1.0.0
  vendor: acme.example
  artifact: {kind: file, digest: %q}
  purpose: Measures
  permissions:
  - {id: read, reason: Shows the forecast, to: {hosts: [api.weather.example]}, methods: [GET], paths: [/v1/*], data: {classes: [internal]}}
  - {id: write, reason: Writes the forecast, to: {hosts: [api.weather.example]}, methods: [POST], paths: [/v2/*], data: {classes: [confidential]}}
`, plugin, artifact)
	put(folder+"manifest.yaml", manifest)
	submission, err := json.Marshal(grantcheck.Submission{
		Plugin: plugin, Version: "1.0.0", Manifest: dsse.Digest(manifest),
		Artifact: grantcheck.Artifact{Kind: grantcheck.ArtifactFile, Digest: artifact}, IssuedAt: benchNow.Add(-time.Hour),
	})
	if err != nil {
		b.Fatal(err)
	}
	seal(folder+"submission.dsse.json", dsse.KindSubmission, submission)
	results := strings.Repeat(`,{"ruleId":"r","level":"warning","message":{"text":"m%d"}}`, 10)
	for j := range 10 {
		results = strings.Replace(results, "%d", fmt.Sprint(j), 1)
	}
	sarif := `{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"scan"}},"results":[` + results[1:] + `]}]}`
	for _, report := range []string{sarif, `{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"name":"a"}]}`} {
		found, err := evidence.Normalise([]byte(report), evidence.Options{IssuedAt: benchNow.Add(-time.Hour)})
		if err != nil {
			b.Fatal(err)
		}
		subject, err := evidence.Artifact(plugin, artifact)
		if err != nil {
			b.Fatal(err)
		}
		payload, err := evidence.New([]evidence.Subject{subject}, found[0].PredicateType, found[0].Predicate)
		if err != nil {
			b.Fatal(err)
		}
		seal(folder+"evidence/"+shortType(found[0].PredicateType)+".dsse.json", dsse.KindEvidence, payload)
	}
}

// readAll is the floor: it reads every file, and verifies as many signatures as there are.
func readAll(b *testing.B, dir string) {
	b.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		b.Fatal(err)
	}
	signature := ed25519.Sign(private, []byte(dir))
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			_, err = os.ReadFile(path)
			if strings.HasSuffix(path, ".dsse.json") && !ed25519.Verify(public, []byte(dir), signature) {
				b.Fatal("signature does not verify")
			}
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}

// cpu returns the CPU time that the process has used.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRepository runs commands over a repository of 1,000 requests: the time, and the
// CPU time on all processors. The floor reads the same files, and verifies as many
// signatures.
func BenchmarkRepository(b *testing.B) {
	dir := benchRepo(b)
	b.Run("floor", func(b *testing.B) {
		before := cpu(b)
		for b.Loop() {
			readAll(b, dir)
		}
		b.ReportMetric((cpu(b)-before).Seconds()/float64(b.N), "cpu-s/op")
	})
	for _, args := range [][]string{{"plugin", "risk", "--table", "--repo", dir}, {"plugin", "status", "--repo", dir}} {
		b.Run(args[1], func(b *testing.B) {
			before := cpu(b)
			for b.Loop() {
				var out, errs bytes.Buffer
				if code := execute(b.Context(), args, nil, &out, &errs, func() time.Time { return benchNow }); code != 0 && code != 1 || bytes.Count(out.Bytes(), []byte("plugin-")) < benchRequests {
					b.Fatalf("status %d: %s%.500s", code, &errs, &out)
				}
			}
			b.ReportMetric((cpu(b)-before).Seconds()/float64(b.N), "cpu-s/op")
		})
	}
}
