package attack

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
	"github.com/chaperone-proxy/chaperone/internal/testenv/selfreplay"
)

// credentialKind is one way to inject a credential. Its host is NAME.good.example.
type credentialKind struct {
	name   string
	fields map[string]any // of secret/data/NAME, "" for another path
	vault  string         // where it is read; "" for secret/data/NAME
	inject string
	extra  string // of the credential
	envoy  bool   // Envoy's door can do it
	// carried returns the credential as it arrived, and "" if it did not.
	carried func(r testenv.WitnessedRequest, c testenv.Witnessed) []string
}

// Canaries, one for each place that a secret is kept in. No two have twelve
// letters in common.
const (
	headerCanary      = "Kq7+h3adER/CaNaRy=e4d5x"
	basicCanary       = "Bz9/pAssW0rd+cANARY=f1"
	queryCanary       = "Qr5=qUErY/cAnArY+8k2w"
	cookieCanary      = "Ck3.c00kIE-CAnaRY_77pz"
	keyIDCanary       = "AKIAQ3EXAMPLE7CANARY"
	awsCanary         = "wJal/rXUt+nFEMI9bPxRfiCYcaNaRYkEy0"
	sessionCanary     = "FwoGZXIvYXdzEPtSeSsIoNcAnArY//8aDK"
	clientCanary      = "cl1ent/SeCrEt+cAnaRY=aa"
	tokenCanary       = "at.oAuTH2-T0keN_CaNaRy.39vX"
	placeholderCanary = "Ph4/behINd+tHe=staNdIN5"
)

func headerOf(name, scheme string) func(testenv.WitnessedRequest, testenv.Witnessed) []string {
	return func(r testenv.WitnessedRequest, _ testenv.Witnessed) []string {
		var out []string
		for _, value := range r.Header.Values(name) {
			out = append(out, strings.TrimPrefix(value, scheme))
		}
		return out
	}
}

func request(r testenv.WitnessedRequest) *http.Request {
	u, _ := http.NewRequest("GET", "http://x"+r.Target, nil) // one that cannot be read has no credential in it
	if u == nil {
		u = httptest.NewRequest("GET", "/", nil)
	}
	u.Header = r.Header
	return u
}

// kinds are all that there are.
func kinds() []credentialKind {
	return []credentialKind{
		{name: "header", envoy: true, fields: map[string]any{"api_key": headerCanary}, inject: `{header: Authorization, value: "Bearer {api_key}"}`, carried: headerOf("Authorization", "Bearer ")},
		{name: "basic", envoy: true, fields: map[string]any{"password": basicCanary}, inject: `{basic: {username: weather, password: "{password}"}}`, carried: func(r testenv.WitnessedRequest, _ testenv.Witnessed) []string {
			var out []string
			for _, value := range r.Header.Values("Authorization") {
				pair, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(value, "Basic "))
				out = append(out, strings.TrimPrefix(string(pair), "weather:"))
			}
			return out
		}},
		{name: "query", envoy: true, fields: map[string]any{"api_key": queryCanary}, inject: `{query: key, value: "{api_key}"}`, carried: func(r testenv.WitnessedRequest, _ testenv.Witnessed) []string {
			return request(r).URL.Query()["key"]
		}},
		{name: "cookie", envoy: true, fields: map[string]any{"api_key": cookieCanary}, inject: `{cookie: sid, value: "{api_key}"}`, carried: func(r testenv.WitnessedRequest, _ testenv.Witnessed) []string {
			var out []string
			for _, c := range request(r).CookiesNamed("sid") {
				out = append(out, c.Value)
			}
			return out
		}},
		{name: "mtls", inject: `{mtls: {}}`, carried: func(_ testenv.WitnessedRequest, c testenv.Witnessed) []string {
			var out []string
			for _, certificate := range c.Certificates {
				out = append(out, string(certificate))
			}
			return out
		}},
		{name: "sigv4", fields: map[string]any{"access_key": keyIDCanary, "secret_key": awsCanary, "security_token": sessionCanary}, inject: `{sigv4: {service: execute-api, region: eu-west-1}}`, carried: headerOf("X-Amz-Security-Token", "")},
		{name: "oauth2", envoy: true, fields: map[string]any{"client_id": "weather", "client_secret": clientCanary}, inject: `{oauth2: {tokenURL: "TOKENS/token", caFile: api-ca.pem}}`, carried: headerOf("Authorization", "Bearer ")},
		{name: "jwt", envoy: true, vault: "transit/sign/weather", inject: `{jwt: {algorithm: ES256, keyID: weather-1, issuer: weather, audience: "https://good.example"}}`, carried: headerOf("Authorization", "Bearer ")},
		{name: "database", envoy: true, vault: "database/creds/weather", inject: `{header: X-Db-Password, value: "{password}"}`, carried: headerOf("X-Db-Password", "")},
		{name: "placeholder", envoy: true, fields: map[string]any{"api_key": placeholderCanary}, inject: `{header: X-Api-Key, value: "{api_key}"}`, extra: "    placeholder: {env: PLACEHOLDER, like: \"wk_{24}\"}\n", carried: headerOf("X-Api-Key", "")},
	}
}

// env is everything that the attacks are made on, once for all doors: a Vault,
// a database, a name server, an identity provider, the host that is good, and
// those that are not.
type env struct {
	t        *testing.T
	scenario *scenario.Env // of which each door has its own folder
	kinds    []credentialKind
	ca       *testenv.CA
	dns      *testenv.DNS

	db     *testenv.Postgres
	good   *testenv.Witness   // 127.0.0.1, port P
	evil   []*testenv.Witness // 127.0.0.2, port P, and more
	tokens *testenv.Witness   // the identity provider
	names  map[string]string  // replacements for texts in attempts

	mu      sync.Mutex
	secrets map[string]map[string]bool // by whose they are
	logins  map[string]error           // with leases that are short, by what the database says of them
}

func newEnv(t *testing.T) *env {
	t.Helper()
	testenv.Require(t, testenv.PostgreSQL())
	e := &env{t: t, kinds: kinds(), secrets: map[string]map[string]bool{}, logins: map[string]error{}}
	e.scenario = scenario.New(t, "off", "")
	e.ca = testenv.MustGet(testenv.NewCA("an authority of the tests"))(t)
	e.startHosts()
	e.fillVault()
	return e
}

// startHosts starts the hosts. Those that are evil have certificates for the good names
// too, so that it is not a certificate that keeps the credential from them.
func (e *env) startHosts() {
	names := []string{"evil.example", "127.0.0.1", "127.0.0.2", "*.good.example", "*.bad.example", "*.tokens.example", "*.lease.example"}
	for _, r := range reboundNames() {
		names = append(names, "*."+r.name+".example")
	}
	tls := func(listen string, handler http.Handler) *testenv.Witness {
		return testenv.MustWitness(e.t, testenv.WitnessConfig{CA: e.ca, Names: names, Listen: listen, Handler: handler})
	}
	plain := func(listen string) *testenv.Witness {
		return testenv.MustWitness(e.t, testenv.WitnessConfig{Listen: listen})
	}
	e.good = tls(testenv.FreeAddress(e.t), http.HandlerFunc(e.serveMalicious))
	port := fmt.Sprint(e.good.Addr.Port())
	evil, elsewhere, inClear := tls("127.0.0.2:"+port, nil), tls("", nil), plain(testenv.FreeAddress(e.t))
	clearEvil := plain(fmt.Sprintf("127.0.0.2:%d", inClear.Addr.Port()))
	e.evil = []*testenv.Witness{evil, elsewhere, inClear, clearEvil}
	e.tokens = tls("", http.HandlerFunc(e.serveToken))
	e.names = map[string]string{
		"{P}": port, "{E}": "evil.example:" + port, "{e}": "evil.example",
		"{OTHER}": fmt.Sprint(elsewhere.Addr.Port()), "{CLEAR}": fmt.Sprint(inClear.Addr.Port()),
	}
	e.dns = testenv.MustDNS(e.t)
	for _, k := range e.kinds {
		e.dns.Set(k.name+".good.example", netip.MustParseAddr("127.0.0.1"))
	}
	for _, s := range e.decoys() {
		e.dns.Set(s.host, netip.MustParseAddr("127.0.0.1"))
	}
	e.dns.Set("evil.example", netip.MustParseAddr("127.0.0.2"))
	e.dns.Set("stated.good.example", netip.MustParseAddr("127.0.0.1"))
	for _, k := range e.kinds {
		for _, r := range reboundNames() {
			e.rebind(k.name+"."+r.name+".example", r.records)
		}
	}
}

// rebind has a name resolve to records, or by turns to the good host and the
// evil one.
func (e *env) rebind(name, records string) {
	if records == "" {
		e.dns.SetSequence(name, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, []netip.Addr{netip.MustParseAddr("127.0.0.2")})
		return
	}
	var lines []string
	for record := range strings.SplitSeq(records, ",") {
		owner := name + "."
		if len(lines) > 0 && strings.Contains(lines[0], "CNAME") {
			owner = "evil.example."
		}
		lines = append(lines, owner+" 0 IN "+record)
	}
	testenv.Must(e.t, e.dns.SetRecords(name, lines...))
}

// addSecret notes a secret and whose it is.
func (e *env) addSecret(owner, secret string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.secrets[owner] == nil {
		e.secrets[owner] = map[string]bool{}
	}
	e.secrets[owner][secret] = true
}

func (e *env) hasSecret(owner, secret string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.secrets[owner][secret]
}

// fillVault makes every credential.
func (e *env) fillVault() {
	t, ctx, v := e.t, e.t.Context(), e.scenario.Vault
	_, der := e.clientKey()
	for _, k := range e.kinds {
		if k.vault == "" && k.fields != nil {
			testenv.Must(t, v.PutSecret(ctx, k.name, k.fields))
		}
		for name, value := range k.fields {
			if text := fmt.Sprint(value); name != "client_id" && name != "access_key" {
				e.addSecret(k.name, text)
			}
		}
	}
	for name, value := range badValues() {
		testenv.Must(t, v.PutSecret(ctx, "bad-"+name, map[string]any{"v": value}))
		e.addSecret("bad-"+name, value)
	}
	e.addSecret("oauth2", tokenCanary)
	e.addSecret("mtls", string(der))
	e.db = testenv.MustPostgres(t)
	testenv.Must(t, v.EnableDatabase(ctx, "database", e.db))
	testenv.Must(t, v.DatabaseRole(ctx, "database", "short", testenv.DatabaseRole{TTL: shortLease, MaxTTL: shortLease}))
	testenv.Must(t, v.DatabaseRole(ctx, "database", "weather", testenv.DatabaseRole{}))
	testenv.Must(t, v.EnableEngine(ctx, "transit", "transit", nil))
	testenv.MustGet(v.Write(ctx, "transit/keys/weather", map[string]any{"type": "ecdsa-p256", "exportable": true}))(t)
	exported := testenv.MustGet(v.Read(ctx, "transit/export/signing-key/weather"))(t)
	keys, _ := exported["keys"].(map[string]any)
	block, _ := pem.Decode([]byte(fmt.Sprint(keys["1"])))
	if block == nil {
		t.Fatal("Vault exports no key")
	}
	e.addSecret("jwt", string(block.Bytes))
	testenv.Must(t, v.Policy(ctx, "weather", `
path "secret/data/*" { capabilities = ["read"] }
path "database/creds/*" { capabilities = ["read"] }
path "transit/sign/weather/*" { capabilities = ["update"] }
path "sys/leases/revoke" { capabilities = ["update"] }`))
	for _, file := range []string{"role-id", "secret-id"} {
		e.addSecret("Vault's login", e.scenario.Read(file))
	}
}

// clientKey makes the certificate of the kind mtls.
func (e *env) clientKey() (certificate, key []byte) {
	pair := testenv.MustGet(e.ca.Issue("weather.example"))(e.t)
	key = testenv.MustGet(x509.MarshalPKCS8PrivateKey(pair.PrivateKey))(e.t)
	for i := range e.kinds {
		if e.kinds[i].name == "mtls" {
			e.kinds[i].fields = map[string]any{
				"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})),
				"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
			}
		}
	}
	return pair.Certificate[0], key
}

// kindOf is the one whose host a request is for.
func (e *env) kindOf(host string) *credentialKind {
	name, _, _ := strings.Cut(strings.ToLower(host), ".")
	for i := range e.kinds {
		if e.kinds[i].name == name {
			return &e.kinds[i]
		}
	}
	return nil
}

// serveMalicious is how the good host answers: with the credential, in the way that the
// path asks for.
func (e *env) serveMalicious(w http.ResponseWriter, r *http.Request) {
	secret := "nothing"
	if k := e.kindOf(r.Host); k != nil {
		seen := testenv.WitnessedRequest{Header: r.Header, Target: r.RequestURI}
		if all := k.carried(seen, testenv.Witnessed{Certificates: testenv.PeerCertificates(r)}); len(all) > 0 && k.name != "mtls" {
			secret = all[0]
		}
	}
	if user, password, ok := r.BasicAuth(); ok && strings.HasPrefix(r.Host, "short.lease.") {
		_, err := e.db.QueryAs(r.Context(), user, password, "SELECT 1")
		e.mu.Lock()
		defer e.mu.Unlock()
		if was := e.logins[user]; was == nil {
			e.logins[user] = err
		}
		return
	}
	way, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
	maliciousAnswer(w, r, way, secret)
}

// serveToken is the identity provider, which is hostile.
func (e *env) serveToken(w http.ResponseWriter, r *http.Request) {
	way := strings.TrimPrefix(r.URL.Path, "/")
	_, secret, _ := r.BasicAuth()
	answer := map[string]any{"access_token": tokenCanary, "expires_in": 3600}
	switch way {
	case "redirect":
		w.Header().Set("Location", "https://evil.example:"+e.names["{P}"]+"/token?"+secret)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	case "slow":
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute):
		}
		return
	case "error":
		http.Error(w, `{"error": "invalid_client", "error_description": "not `+secret+`"}`, http.StatusUnauthorized)
		return
	case "audience":
		answer["access_token"] = "at-for-" + r.FormValue("audience") + "-Xy77"
	case "unsaid":
		delete(answer, "expires_in")
	case "zero":
		answer["expires_in"] = 0
	case "negative":
		answer["expires_in"] = -5
	case "huge":
		answer["expires_in"] = int64(1) << 62
	case "text":
		answer["expires_in"] = "3600"
	case "endless":
		answer["filler"] = strings.Repeat("x", 4<<20)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // an error means that it has gone
}

// harness is a sidecar at one door, and the plugin in front of it.
type harness struct {
	*env
	t        *testing.T
	scenario *scenario.Env
	envoy    *testenv.Envoy
	metrics  string
	door     string            // Envoy's address
	login    string            // the line that the proxy wants of a request
	ownNames map[string]string // as env.names
	stderr   *scenario.Buffer
	view     pluginView
	cmd      *exec.Cmd
	sidecar  *scenario.Process
	stdin    *json.Encoder
	repeats  map[string]int // how often attempts were made again, by id

	mu      sync.Mutex
	waiting map[string]chan attemptResult
	results map[string]attemptResult
}

// open starts a sidecar with the kernel half (required), without (off), or
// behind Envoy (envoy).
func (e *env) open(t *testing.T, door string) *harness {
	t.Helper()
	h := &harness{env: e, t: t, stderr: new(scenario.Buffer), repeats: map[string]int{}, waiting: map[string]chan attemptResult{}, results: map[string]attemptResult{}}
	h.scenario = &scenario.Env{T: t, Dir: t.TempDir(), Vault: e.scenario.Vault, API: e.scenario.API}
	selfreplay.AtEnd(t, h.scenario.File("sidecar.yaml"))
	testenv.Must(t, os.Chmod(filepath.Dir(h.scenario.Dir), 0o755))
	for _, file := range []string{"role-id", "secret-id"} {
		h.scenario.Write(file, e.scenario.Read(file))
	}
	testenv.Must(t, e.ca.WriteFile(h.scenario.File("api-ca.pem")))
	h.metrics = testenv.FreeAddress(t)
	h.configure(door)
	program := h.scenario.CopyProgram(hostileProgram)
	args := []string{program}
	for _, file := range []string{"role-id", "secret-id", "grant.yaml", "state/audit.jsonl", "state/placeholders.env", "state/admin.sock", "/proc/1/environ", fmt.Sprintf("/proc/%d/environ", os.Getpid())} {
		if !strings.HasPrefix(file, "/") {
			file = h.scenario.File(file)
		}
		args = append(args, file)
	}
	if door == "envoy" {
		serve := h.scenario.Command("serve", "--config", h.scenario.File("sidecar.yaml"))
		serve.Env = append(serve.Env, "GOTRACEBACK=all") // see the end of harness.searchSecrets
		h.sidecar = h.scenario.StartProcess(serve)
		h.scenario.Ready()
		h.startEnvoy()
		h.cmd = exec.Command(program, args[1:]...)
		h.cmd.Env = strings.Split(strings.TrimSpace(h.scenario.Read("state/"+"placeholders.env")), "\n")
		h.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 61998, Gid: 61998}}
	} else {
		h.cmd = h.scenario.Command(append([]string{"run", "--config", h.scenario.File("sidecar.yaml"), "--"}, args...)...)
	}
	h.startPlugin()
	vault := h.ownAddresses()[0].port
	h.ownNames = map[string]string{"{VAULT}": vault, "{METRICS}": h.ownAddresses()[1].port, "{PROXY}": h.metrics[strings.LastIndex(h.metrics, ":")+1:]}
	maps.Copy(h.ownNames, placeholderNames(h.environment("PLACEHOLDER")))
	e.addSecret("the placeholder", h.environment("PLACEHOLDER"))
	if proxy := h.environment("HTTPS_PROXY"); proxy != "" {
		via := testenv.MustGet(url.Parse(proxy))(t)
		h.login = proxyLogin(via)
		h.ownNames["{PROXY}"] = via.Port()
	}
	return h
}

// startPlugin starts the plugin, by the sidecar or beside it, and reads its output.
func (h *harness) startPlugin() {
	h.t.Helper()
	stdin := testenv.MustGet(h.cmd.StdinPipe())(h.t)
	stdout := testenv.MustGet(h.cmd.StdoutPipe())(h.t)
	h.cmd.Stderr = h.stderr
	testenv.Must(h.t, h.cmd.Start())
	h.stdin = json.NewEncoder(stdin)
	h.t.Cleanup(func() {
		_ = stdin.Close() // at which the plugin ends, and its sidecar with it
		ended := make(chan struct{})
		go func() { _ = h.cmd.Wait(); close(ended) }() // how is looked at nowhere
		select {
		case <-ended:
		case <-time.After(2 * time.Minute):
			_ = h.cmd.Process.Kill()
			<-ended
		}
	})
	in := json.NewDecoder(stdout)
	if err := in.Decode(&h.view); err != nil {
		h.t.Fatalf("the plugin says nothing: %v\n%s", err, h.stderr.String())
	}
	go func() {
		for {
			var g attemptResult
			if in.Decode(&g) != nil {
				return
			}
			h.deliver(g)
		}
	}()
}

func (h *harness) deliver(g attemptResult) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.results[g.ID+" "+g.Event] = g
	select {
	case h.waiting[g.ID+" "+g.Event] <- g:
	default: // no test waits for another one
	}
}

// expect returns where an event of an attempt arrives.
func (h *harness) expect(id, event string) <-chan attemptResult {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := make(chan attemptResult, 8)
	h.waiting[id+" "+event] = c
	return c
}

// await waits for an event.
func (h *harness) await(c <-chan attemptResult, what string) attemptResult {
	h.t.Helper()
	select {
	case g := <-c:
		return g
	case <-time.After(5 * time.Minute):
		h.t.Fatalf("not within five minutes: %s", what)
		return attemptResult{}
	}
}

func (h *harness) environment(name string) string {
	for _, pair := range h.view.Env {
		if value, ok := strings.CutPrefix(pair, name+"="); ok {
			return value
		}
	}
	return ""
}

// startEnvoy runs Envoy from the bootstrap that is shipped, with this test's
// addresses, name server and authority in it.
func (h *harness) startEnvoy() {
	root := testenv.MustGet(testenv.Root())(h.t)
	text := string(testenv.MustGet(os.ReadFile(root + "/configs/envoy/bootstrap.yaml"))(h.t))
	for _, change := range [][2]string{
		{"/run/chaperone/weather", h.scenario.Dir},
		{"port_value: 15080", "port_value: 0"},
		{"/etc/ssl/certs/ca-certificates.crt", h.scenario.File("api-ca.pem")},
		{"dns_lookup_family: V4_PREFERRED", fmt.Sprintf(`dns_lookup_family: V4_ONLY, typed_dns_resolver_config: {name: envoy.network.dns_resolver.cares, typed_config: {"@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: [{socket_address: {address: 127.0.0.1, port_value: %d}}]}}`, h.dns.Addr.Port())},
	} {
		if !strings.Contains(text, change[0]) {
			h.t.Fatalf("the bootstrap does not hold %q", change[0])
		}
		text = strings.ReplaceAll(text, change[0], change[1])
	}
	h.envoy = testenv.MustEnvoy(h.t, testenv.EnvoyConfig{Bootstrap: text})
	h.door = testenv.MustGet(h.envoy.Listener(h.t.Context(), "plugin"))(h.t).String()
}

// shortLease is how long some logins to the database live.
const shortLease = 6 * time.Second

// decoy is one of further credentials, each at a host of its own: ones that must
// never be sent, and those of strange token endpoints.
type decoy struct{ host, path, inject string }

func (e *env) decoys() []decoy {
	var out []decoy
	for _, inject := range []string{`{header: X-Key, value: "{v}"}`, `{query: key, value: "{v}"}`, `{cookie: sid, value: "{v}"}`, `{basic: {username: u, password: "{v}"}}`} {
		for name := range badValues() {
			way := strings.TrimLeft(inject, "{")[:5]
			out = append(out, decoy{name + "-" + strings.Trim(way, " :") + ".bad.example", "secret/data/bad-" + name, inject})
		}
	}
	out = append(out, decoy{"short.lease.example", "database/creds/short", `{basic: {username: "{username}", password: "{password}"}}`})
	for _, way := range []string{"redirect", "slow", "error", "unsaid", "zero", "negative", "huge", "text", "endless"} {
		out = append(out, decoy{way + ".tokens.example", "secret/data/oauth2", fmt.Sprintf(`{oauth2: {tokenURL: "TOKENS/%s", caFile: api-ca.pem}}`, way)})
	}
	for _, audience := range []string{"first", "second"} {
		out = append(out, decoy{audience + ".tokens.example", "secret/data/oauth2", fmt.Sprintf(`{oauth2: {tokenURL: "TOKENS/audience", audience: %s, caFile: api-ca.pem}}`, audience)})
	}
	return out
}

// badValues are what no header may hold, and Vault may.
func badValues() map[string]string {
	return map[string]string{
		"crlf": "Cr7a\r\nX-Leak: yes\r\n\r\nGET /v1/smuggled HTTP/1.1", "newline": "trailing-newline-canary\n",
		"nul": "nul\x00canary-of-the-tests", "del": "del\x7fcanary-of-the-tests",
	}
}

// configure writes the files of one door.
func (h *harness) configure(door string) {
	kernel, listen := door, fmt.Sprintf("proxy: %q, ", testenv.FreeAddress(h.t))
	if door == "envoy" {
		kernel, listen = "off", fmt.Sprintf("extAuthz: %q, ", "unix:"+h.scenario.File("ext_authz.sock"))
	}
	var hosts strings.Builder
	add := func(name, address string) {
		fmt.Fprintf(&hosts, "%s: [%s], ", name, address)
	}
	for _, k := range h.kinds {
		add(k.name+".good.example", "127.0.0.1")
	}
	for _, s := range h.decoys() {
		add(s.host, "127.0.0.1")
	}
	add("evil.example", "127.0.0.2")
	for _, self := range h.ownAddresses() {
		add(self.host, "127.0.0.1")
	}
	h.scenario.Write("sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: Sidecar
metadata: {name: weather}
spec:
  plugin: weather
  grants: [grant.yaml]
  stateDir: state
  kernel: %q
  listen: {%smetrics: %q}
  dns: {servers: [%q], hosts: {%s}}
  audit: {paths: full}
  drain: 1s
  vault: {address: %s, auth: {method: approle, roleIDFile: role-id, secretIDFile: secret-id}}
`, kernel, listen, h.metrics, h.dns.Addr, strings.TrimSuffix(hosts.String(), ", "), h.scenario.Vault.Address))
	h.scenario.Write("grant.yaml", strings.ReplaceAll(h.grant(door == "envoy"), "TOKENS", fmt.Sprintf("https://127.0.0.1:%d", h.tokens.Addr.Port())))
}

// ownAddresses are granted names that resolve to the sidecar's own addresses.
func (h *harness) ownAddresses() []struct{ host, port string } {
	_, metrics, _ := net.SplitHostPort(h.metrics)
	vault := h.scenario.Vault.Address[strings.LastIndex(h.scenario.Vault.Address, ":")+1:]
	return []struct{ host, port string }{{"vault.self.example", vault}, {"metrics.self.example", metrics}}
}

// grant gives every kind of credential a rule of its own. Behind Envoy no rule
// states what Envoy's door does not see to.
func (h *harness) grant(envoy bool) string {
	var rules, credentials strings.Builder
	rule := func(id, to, credential string, states string) {
		if envoy {
			states = ""
		}
		fmt.Fprintf(&rules, "  - {id: %s, reason: Tests, to: {%s%s}, methods: [GET, POST, PUT], paths: [\"/v1/**\"], upgrades: [websocket]%s}\n", id, to, states, credential)
	}
	const local = ", addresses: [127.0.0.1/32], tls: {caFile: api-ca.pem, originate: true}"
	for _, k := range h.kinds {
		n := k.name
		hosts := n + ".good.example"
		for _, other := range reboundNames() {
			hosts += ", " + n + "." + other.name + ".example"
		}
		rule(n, fmt.Sprintf("hosts: [%s], ports: [%s]", hosts, h.names["{P}"]), ", credential: "+n, local)
		path := k.vault
		if path == "" {
			path = "secret/data/" + n
		}
		fmt.Fprintf(&credentials, "  - name: %s\n    vault: {path: %s}\n    inject: %s\n%s", n, path, k.inject, k.extra)
	}
	for i, s := range h.decoys() {
		rule(fmt.Sprintf("spare-%d", i), fmt.Sprintf("hosts: [%s], ports: [%s]", s.host, h.names["{P}"]), fmt.Sprintf(", credential: spare-%d", i), local)
		fmt.Fprintf(&credentials, "  - name: spare-%d\n    vault: {path: %s}\n    inject: %s\n", i, s.path, s.inject)
	}
	rule("evil", "hosts: [evil.example], ports: ["+h.names["{P}"]+"]", "", ", addresses: [127.0.0.2/32], tls: {caFile: api-ca.pem, originate: true}")
	rule("evil-in-clear", "scheme: http, hosts: [evil.example], ports: ["+h.names["{CLEAR}"]+"]", "", ", addresses: [127.0.0.2/32]")
	for _, self := range h.ownAddresses() {
		rule(strings.ReplaceAll(self.host, ".", "-"), "scheme: http, hosts: ["+self.host+"], ports: ["+self.port+"]", "", ", addresses: [127.0.0.1/32]")
	}
	if envoy {
		fmt.Fprintf(&rules, "  - {id: stated, reason: Tests, to: {hosts: [stated.good.example], ports: [%s], addresses: [127.0.0.1/32]}, methods: [GET], paths: [\"/v1/**\"], credential: header}\n", h.names["{P}"])
	}
	return fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
kind: PluginGrant
metadata: {name: weather}
spec:
  plugin: weather
  notAfter: %s
  rules:
%s  credentials:
%s`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339), rules.String(), credentials.String())
}
