package main

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
)

// example is one section of a page of docs/credentials.
type example struct{ title, commands, policy, yaml string }

// examples returns the sections by their titles.
func examples(t *testing.T) map[string]example {
	t.Helper()
	root := testenv.MustGet(testenv.Root())(t)
	var text string
	for _, page := range testenv.MustGet(filepath.Glob(root + "/docs/credentials/*.md"))(t) {
		text += string(testenv.MustGet(os.ReadFile(page))(t))
	}
	out := map[string]example{}
	for _, section := range regexp.MustCompile(`(?m)^##+ `).Split(text, -1)[1:] {
		title, body, _ := strings.Cut(section, "\n")
		e := example{title: title}
		for _, block := range regexp.MustCompile("(?s)```(\\w+)\n(.*?)```").FindAllStringSubmatch(body, -1) {
			switch block[1] {
			case "sh":
				e.commands += block[2]
			case "hcl":
				e.policy += block[2]
			case "yaml":
				e.yaml += block[2]
			}
		}
		out[title] = e
	}
	return out
}

// vaultCLI does what a line of the documentation has the vault command do.
func vaultCLI(t *testing.T, w *env, line string) {
	t.Helper()
	line, file, _ := strings.Cut(line, " > ")
	var words []string
	for _, m := range regexp.MustCompile(`(?:[^\s']|'(?:[^']|'')*')+`).FindAllString(line, -1) {
		name, value, quoted := strings.Cut(m, "='")
		if quoted {
			m = name + "=" + strings.ReplaceAll(strings.TrimSuffix(value, "'"), "''", "'")
		}
		words = append(words, m)
	}
	flags, data, args := map[string]string{}, map[string]any{}, []string{}
	for _, word := range words[1:] {
		name, value, pair := strings.Cut(word, "=")
		switch {
		case strings.HasPrefix(word, "-"):
			flags[strings.TrimLeft(name, "-")] = value
		case pair && len(args) > 1:
			data[name] = value
		default:
			args = append(args, word)
		}
	}
	ctx, v := t.Context(), w.Vault
	var answer map[string]any
	var err error
	switch verb := strings.Join(args[:min(2, len(args))], " "); {
	case verb == "secrets enable":
		path := flags["path"]
		if path == "" {
			path = args[2]
		}
		if path != "secret" { // Vault's own development mode has it
			err = v.EnableEngine(ctx, path, args[2], nil)
		}
	case verb == "auth enable":
		err = v.EnableAuth(ctx, args[2], args[2])
	case verb == "kv put":
		mount, name, _ := strings.Cut(args[2], "/")
		_, err = v.Write(ctx, mount+"/data/"+name, map[string]any{"data": data})
	case args[0] == "write":
		answer, err = v.Write(ctx, args[1], data)
	case args[0] == "read":
		answer, err = v.Read(ctx, args[1])
	default:
		t.Fatalf("the test does not know: %s", line)
	}
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	if file != "" {
		w.Write(file, fmt.Sprint(answer[flags["field"]]))
	}
}

func (e example) setUp(t *testing.T, w *env) {
	t.Helper()
	for line := range strings.Lines(e.commands) {
		if strings.HasPrefix(line, "vault ") {
			vaultCLI(t, w, strings.TrimSuffix(line, "\n"))
		}
	}
}

// use writes a grant of the example's credential.
func (e example) use(t *testing.T, w *env) {
	t.Helper()
	name := regexp.MustCompile(`- name: (\S+)`).FindStringSubmatch(e.yaml)
	if name == nil {
		t.Fatalf("%s: no credential in %q", e.title, e.yaml)
	}
	w.Write("grant.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: %s
  rules:
  - id: api
    reason: Tests
    to: {hosts: [%s], ports: [%d], addresses: [127.0.0.1/32], tls: {caFile: api-ca.pem}}
    methods: [GET]
    paths: [/open, /echo]
    credential: %s
  credentials:
%s`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339), scenario.Host, w.API.Addr.Port(), name[1], regexp.MustCompile(`(?m)^`).ReplaceAllString(strings.TrimSpace(e.yaml), "  ")+"\n"))
}

// TestEveryExampleLoads loads what is not run too.
func TestEveryExampleLoads(t *testing.T) {
	w := newEnv(t, "off", "")
	spec, loaded := w.Read("sidecar.yaml"), 0
	for _, e := range examples(t) {
		switch {
		case e.yaml == "":
			continue
		case strings.HasPrefix(e.yaml, "auth:"):
			w.Write("sidecar.yaml", regexp.MustCompile(`auth: .*}}`).ReplaceAllLiteralString(spec, strings.TrimSpace(e.yaml)+"}"))
		case strings.HasPrefix(e.yaml, "upstreamProxy:"):
			w.Write("spec.yaml", spec+"  "+e.yaml)
		default:
			w.Write("sidecar.yaml", spec)
			e.use(t, w)
		}
		if _, err := configs.Load(w.File("sidecar.yaml"), time.Now()); err != nil {
			t.Errorf("%s: %v", e.title, err)
		}
		loaded++
	}
	if loaded < 17 {
		t.Errorf("only %d examples are in docs/credentials", loaded)
	}
}

// TestExamplesWork has a plugin use each credential as the documentation sets it
// up, with its policy alone, and looks at what the API received and what nobody
// else did.
func TestExamplesWork(t *testing.T) {
	const key = "wk_live_5d1f"
	header := func(r testenv.Received) string { return r.Header.Get("Authorization") }
	for title, c := range map[string]struct {
		before func(t *testing.T, w *env, e *example)
		want   string // a pattern of what the API received
		got    func(testenv.Received) string
	}{
		"A key in a header":          {want: "^Bearer " + key + "$", got: header},
		"A query parameter":          {want: "^/open\\?key=" + key + "$", got: func(r testenv.Received) string { return r.Target }},
		"A cookie":                   {want: "^session=0f3a77c1e2$", got: func(r testenv.Received) string { return r.Header.Get("Cookie") }},
		"A placeholder":              {want: "^" + key + "$", got: func(r testenv.Received) string { return r.Header.Get("X-Api-Key") }},
		"A database user's password": {before: withDatabase, want: "^v-approle-weather-.*:.{20}$", got: basicOf},
		"A static database user":     {before: withDatabase, want: "^weather:.{20}$", got: basicOf},
		"A client certificate":       {before: withClientCertificates, want: "CN=weather.example", got: func(r testenv.Received) string { return r.Client }},
		"An AWS signature":           {before: withoutAWS, want: "^AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/[0-9]{8}/eu-west-1/s3/aws4_request, ", got: header},
		"A token by OAuth2":          {before: withTokenEndpoint, want: "^Bearer at-weather-forecast.read$", got: header},
		"A token that Vault signs":   {want: "^Bearer ey[^.]*\\.ey[^.]*\\.[^.]*$", got: header},
	} {
		t.Run(title, func(t *testing.T) {
			all := examples(t)
			e, ok := all[title]
			if !ok {
				t.Fatal("is not in docs/credentials")
			}
			w := newEnv(t, "off", "")
			all["A key in a header"].setUp(t, w)
			if c.before != nil {
				c.before(t, w, &e)
			}
			if e.policy == "" {
				e.policy = all["A key in a header"].policy
			}
			all["AppRole"].setUp(t, w)
			testenv.Must(t, w.Vault.Policy(t.Context(), "weather", e.policy))
			if title != "A key in a header" {
				e.setUp(t, w)
			}
			e.use(t, w)
			r := w.Run("curl", "-sS", "-H", "X-Api-Key: mine", "-H", "Authorization: mine", "-H", "Cookie: session=mine", w.URL("/open"))
			received := w.API.Requests()
			if r.Status != 0 || len(received) != 1 {
				t.Fatalf("status %d, %d requests\n%s%s", r.Status, len(received), r.Stdout, r.Stderr)
			}
			value := c.got(received[0])
			if !regexp.MustCompile(c.want).MatchString(value) {
				t.Errorf("the API received %q\n%v", value, received[0])
			}
			secret := value[strings.LastIndexAny(value, " =:")+1:]
			if title == "An AWS signature" {
				secret = "FwoGZXIvYXdz"
			}
			written := r.Stdout + r.Stderr + w.Read("state/audit.jsonl")
			if title != "A client certificate" && strings.Contains(written, secret) {
				t.Errorf("%q is in what the plugin or the log got:\n%s", secret, written)
			}
			leases := testenv.MustGet(w.Vault.Leases(t.Context(), "database/creds/weather"))(t)
			if len(leases) != 0 {
				t.Errorf("%d leases are left", len(leases))
			}
		})
	}
}

func basicOf(r testenv.Received) string {
	text, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Header.Get("Authorization"), "Basic "))
	return string(text)
}

func withDatabase(t *testing.T, w *env, e *example) {
	testenv.Require(t, testenv.PostgreSQL())
	db := testenv.MustPostgres(t)
	testenv.MustGet(db.Query(t.Context(), "CREATE ROLE weather LOGIN PASSWORD 'initial'"))(t)
	testenv.Must(t, w.Vault.EnableDatabase(t.Context(), "database", db))
	e.commands = strings.ReplaceAll(e.commands, "vault secrets enable database\n", "")
}

// withClientCertificates has the API ask for one.
func withClientCertificates(t *testing.T, w *env, _ *example) {
	w.API = testenv.MustUpstream(t, testenv.UpstreamConfig{Names: []string{scenario.Host}, TLS: func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }})
	testenv.Must(t, w.API.CA.WriteFile(w.File("api-ca.pem")))
}

func withoutAWS(t *testing.T, w *env, e *example) {
	e.commands = "vault kv put secret/aws access_key=AKIAEXAMPLE secret_key=wJalrXUtnFEMI security_token=FwoGZXIvYXdz\n"
	e.policy = strings.ReplaceAll(e.policy, "aws/sts/weather", "secret/data/aws")
	e.yaml = strings.ReplaceAll(e.yaml, "aws/sts/weather", "secret/data/aws")
}

// withTokenEndpoint serves tokens for the client's name and scopes.
func withTokenEndpoint(t *testing.T, w *env, e *example) {
	ca := testenv.MustGet(testenv.NewCA("identity provider"))(t)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		id, secret, _ := r.BasicAuth()
		if secret != "cs_8f2b" || r.FormValue("audience") != "https://api.weather.example" {
			http.Error(rw, "no", http.StatusUnauthorized)
			return
		}
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(map[string]any{"access_token": "at-" + id + "-" + r.FormValue("scope"), "expires_in": 3600})
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{testenv.MustGet(ca.Issue("id.weather.example"))(t)}}
	server.StartTLS()
	t.Cleanup(server.Close)
	testenv.Must(t, ca.WriteFile(w.File("id-ca.pem")))
	_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "https://"), ":")
	e.yaml = strings.ReplaceAll(e.yaml, `tokenURL: "https://id.weather.example/`, `caFile: id-ca.pem, tokenURL: "https://id.weather.example:`+port+"/")
	spec := w.Read("sidecar.yaml")
	w.Write("sidecar.yaml", strings.Replace(spec, "dns: {hosts: {", "dns: {hosts: {id.weather.example: [127.0.0.1], ", 1))
}
