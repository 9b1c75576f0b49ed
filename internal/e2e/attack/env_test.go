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
)

// kind is one way to inject a credential. Its host is NAME.good.example.
type kind struct {
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
	headerCanary  = "Kq7+h3adER/CaNaRy=e4d5x"
	basicCanary   = "Bz9/pAssW0rd+cANARY=f1"
	queryCanary   = "Qr5=qUErY/cAnArY+8k2w"
	cookieCanary  = "Ck3.c00kIE-CAnaRY_77pz"
	keyIDCanary   = "AKIAQ3EXAMPLE7CANARY"
	awsCanary     = "wJal/rXUt+nFEMI9bPxRfiCYcaNaRYkEy0"
	sessionCanary = "FwoGZXIvYXdzEPtSeSsIoNcAnArY//8aDK"
	clientCanary  = "cl1ent/SeCrEt+cAnaRY=aa"
	tokenCanary   = "at.oAuTH2-T0keN_CaNaRy.39vX"
	standInCanary = "Ph4/behINd+tHe=staNdIN5"
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
func kinds() []kind {
	return []kind{
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
		{name: "placeholder", envoy: true, fields: map[string]any{"api_key": standInCanary}, inject: `{header: X-Api-Key, value: "{api_key}"}`, extra: "    placeholder: {env: STAND_IN, like: \"wk_{24}\"}\n", carried: headerOf("X-Api-Key", "")},
	}
}

// house is everything that the attacks are made on, once for all doors: a Vault,
// a database, a name server, an identity provider, the host that is good, and
// those that are not.
type house struct {
	t     *testing.T
	world *scenario.Env // of which each door has its own folder
	kinds []kind
	ca    *testenv.CA
	dns   *testenv.DNS

	db     *testenv.Postgres
	good   *testenv.Witness   // 127.0.0.1, port P
	evil   []*testenv.Witness // 127.0.0.2, port P, and more
	tokens *testenv.Witness   // the identity provider
	names  map[string]string  // replacements for texts in attempts

	mu      sync.Mutex
	secrets map[string]map[string]bool // by whose they are
	logins  map[string]error           // with leases that are short, by what the database says of them
}

func newHouse(t *testing.T) *house {
	t.Helper()
	testenv.Require(t, testenv.PostgreSQL())
	h := &house{t: t, kinds: kinds(), secrets: map[string]map[string]bool{}, logins: map[string]error{}}
	h.world = scenario.New(t, "off", "")
	h.ca = testenv.MustGet(testenv.NewCA("an authority of the tests"))(t)
	h.hosts()
	h.fillVault()
	return h
}

// hosts starts them. Those that are evil have certificates for the good names
// too, so that it is not a certificate that keeps the credential from them.
func (h *house) hosts() {
	names := []string{"evil.example", "127.0.0.1", "127.0.0.2", "*.good.example", "*.bad.example", "*.tokens.example", "*.lease.example"}
	for _, r := range rebound() {
		names = append(names, "*."+r.name+".example")
	}
	tls := func(listen string, handler http.Handler) *testenv.Witness {
		return testenv.MustWitness(h.t, testenv.WitnessConfig{CA: h.ca, Names: names, Listen: listen, Handler: handler})
	}
	plain := func(listen string) *testenv.Witness {
		return testenv.MustWitness(h.t, testenv.WitnessConfig{Listen: listen})
	}
	h.good = tls("", http.HandlerFunc(h.betray))
	port := fmt.Sprint(h.good.Addr.Port())
	evil, elsewhere, inClear := tls("127.0.0.2:"+port, nil), tls("", nil), plain("")
	clearEvil := plain(fmt.Sprintf("127.0.0.2:%d", inClear.Addr.Port()))
	h.evil = []*testenv.Witness{evil, elsewhere, inClear, clearEvil}
	h.tokens = tls("", http.HandlerFunc(h.issue))
	h.names = map[string]string{
		"{P}": port, "{E}": "evil.example:" + port, "{e}": "evil.example",
		"{OTHER}": fmt.Sprint(elsewhere.Addr.Port()), "{CLEAR}": fmt.Sprint(inClear.Addr.Port()),
	}
	h.dns = testenv.MustDNS(h.t)
	for _, k := range h.kinds {
		h.dns.Set(k.name+".good.example", netip.MustParseAddr("127.0.0.1"))
	}
	for _, s := range h.spares() {
		h.dns.Set(s.host, netip.MustParseAddr("127.0.0.1"))
	}
	h.dns.Set("evil.example", netip.MustParseAddr("127.0.0.2"))
	h.dns.Set("stated.good.example", netip.MustParseAddr("127.0.0.1"))
	for _, k := range h.kinds {
		for _, r := range rebound() {
			h.rebind(k.name+"."+r.name+".example", r.records)
		}
	}
}

// rebind has a name resolve to records, or by turns to the good host and the
// evil one.
func (h *house) rebind(name, records string) {
	if records == "" {
		h.dns.SetSequence(name, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, []netip.Addr{netip.MustParseAddr("127.0.0.2")})
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
	testenv.Must(h.t, h.dns.SetRecords(name, lines...))
}

// keep notes a secret and whose it is.
func (h *house) keep(owner, secret string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.secrets[owner] == nil {
		h.secrets[owner] = map[string]bool{}
	}
	h.secrets[owner][secret] = true
}

func (h *house) owns(owner, secret string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.secrets[owner][secret]
}

// fillVault makes every credential.
func (h *house) fillVault() {
	t, ctx, v := h.t, h.t.Context(), h.world.Vault
	_, der := h.clientKey()
	for _, k := range h.kinds {
		if k.vault == "" && k.fields != nil {
			testenv.Must(t, v.PutSecret(ctx, k.name, k.fields))
		}
		for name, value := range k.fields {
			if text := fmt.Sprint(value); name != "client_id" && name != "access_key" {
				h.keep(k.name, text)
			}
		}
	}
	for name, value := range badValues() {
		testenv.Must(t, v.PutSecret(ctx, "bad-"+name, map[string]any{"v": value}))
		h.keep("bad-"+name, value)
	}
	h.keep("oauth2", tokenCanary)
	h.keep("mtls", string(der))
	h.db = testenv.MustPostgres(t)
	testenv.Must(t, v.EnableDatabase(ctx, "database", h.db))
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
	h.keep("jwt", string(block.Bytes))
	testenv.Must(t, v.Policy(ctx, "weather", `
path "secret/data/*" { capabilities = ["read"] }
path "database/creds/*" { capabilities = ["read"] }
path "transit/sign/weather/*" { capabilities = ["update"] }
path "sys/leases/revoke" { capabilities = ["update"] }`))
	for _, file := range []string{"role-id", "secret-id"} {
		h.keep("Vault's login", h.world.Read(file))
	}
}

// clientKey makes the certificate of the kind mtls.
func (h *house) clientKey() (certificate, key []byte) {
	pair := testenv.MustGet(h.ca.Issue("weather.example"))(h.t)
	key = testenv.MustGet(x509.MarshalPKCS8PrivateKey(pair.PrivateKey))(h.t)
	for i := range h.kinds {
		if h.kinds[i].name == "mtls" {
			h.kinds[i].fields = map[string]any{
				"certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})),
				"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
			}
		}
	}
	return pair.Certificate[0], key
}

// kindOf is the one whose host a request is for.
func (h *house) kindOf(host string) *kind {
	name, _, _ := strings.Cut(strings.ToLower(host), ".")
	for i := range h.kinds {
		if h.kinds[i].name == name {
			return &h.kinds[i]
		}
	}
	return nil
}

// betray is how the good host answers: with the credential, in the way that the
// path asks for.
func (h *house) betray(w http.ResponseWriter, r *http.Request) {
	secret := "nothing"
	if k := h.kindOf(r.Host); k != nil {
		seen := testenv.WitnessedRequest{Header: r.Header, Target: r.RequestURI}
		if all := k.carried(seen, testenv.Witnessed{Certificates: testenv.PeerCertificates(r)}); len(all) > 0 && k.name != "mtls" {
			secret = all[0]
		}
	}
	if user, password, ok := r.BasicAuth(); ok && strings.HasPrefix(r.Host, "short.lease.") {
		_, err := h.db.QueryAs(r.Context(), user, password, "SELECT 1")
		h.mu.Lock()
		defer h.mu.Unlock()
		if was := h.logins[user]; was == nil {
			h.logins[user] = err
		}
		return
	}
	way, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
	betray(w, r, way, secret)
}

// issue is the identity provider, which is hostile.
func (h *house) issue(w http.ResponseWriter, r *http.Request) {
	way := strings.TrimPrefix(r.URL.Path, "/")
	_, secret, _ := r.BasicAuth()
	answer := map[string]any{"access_token": tokenCanary, "expires_in": 3600}
	switch way {
	case "redirect":
		w.Header().Set("Location", "https://evil.example:"+h.names["{P}"]+"/token?"+secret)
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

// room is a sidecar at one door, and the plugin in front of it.
type room struct {
	*house
	t       *testing.T
	world   *scenario.Env
	envoy   *testenv.Envoy
	metrics string
	door    string            // Envoy's address
	login   string            // the line that the proxy wants of a request
	own     map[string]string // as house.names
	stderr  *scenario.Buffer
	hello   hello
	cmd     *exec.Cmd
	sidecar *scenario.Process
	stdin   *json.Encoder
	repeats map[string]int // how often attempts were made again, by id

	mu      sync.Mutex
	waiting map[string]chan gotten
	results map[string]gotten
}

// open starts a sidecar with the kernel half (required), without (off), or
// behind Envoy (envoy).
func (h *house) open(t *testing.T, door string) *room {
	t.Helper()
	r := &room{house: h, t: t, stderr: new(scenario.Buffer), repeats: map[string]int{}, waiting: map[string]chan gotten{}, results: map[string]gotten{}}
	r.world = &scenario.Env{T: t, Dir: t.TempDir(), Vault: h.world.Vault, API: h.world.API}
	testenv.Must(t, os.Chmod(filepath.Dir(r.world.Dir), 0o755))
	for _, file := range []string{"role-id", "secret-id"} {
		r.world.Write(file, h.world.Read(file))
	}
	testenv.Must(t, h.ca.WriteFile(r.world.File("api-ca.pem")))
	r.metrics = freeAddress(t)
	r.configure(door)
	program := r.world.CopyProgram(hostileProgram)
	args := []string{program}
	for _, file := range []string{"role-id", "secret-id", "grant.yaml", "state/audit.jsonl", "state/placeholders.env", "state/admin.sock", "/proc/1/environ", fmt.Sprintf("/proc/%d/environ", os.Getpid())} {
		if !strings.HasPrefix(file, "/") {
			file = r.world.File(file)
		}
		args = append(args, file)
	}
	if door == "envoy" {
		serve := r.world.Command("serve", "--config", r.world.File("sidecar.yaml"))
		serve.Env = append(serve.Env, "GOTRACEBACK=all") // see the end of room.search
		r.sidecar = r.world.StartProcess(serve)
		r.world.Ready()
		r.startEnvoy()
		r.cmd = exec.Command(program, args[1:]...)
		r.cmd.Env = strings.Split(strings.TrimSpace(r.world.Read("state/"+"placeholders.env")), "\n")
		r.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 61998, Gid: 61998}}
	} else {
		r.cmd = r.world.Command(append([]string{"run", "--config", r.world.File("sidecar.yaml"), "--"}, args...)...)
	}
	r.startPlugin()
	vault := r.selves()[0].port
	r.own = map[string]string{"{VAULT}": vault, "{METRICS}": r.selves()[1].port, "{PROXY}": r.metrics[strings.LastIndex(r.metrics, ":")+1:]}
	maps.Copy(r.own, standInTexts(r.environment("STAND_IN")))
	h.keep("the stand-in", r.environment("STAND_IN"))
	if proxy := r.environment("HTTPS_PROXY"); proxy != "" {
		via := testenv.MustGet(url.Parse(proxy))(t)
		r.login = proxyLogin(via)
		r.own["{PROXY}"] = via.Port()
	}
	return r
}

func freeAddress(t *testing.T) string {
	t.Helper()
	free := testenv.MustGet(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer free.Close()
	return free.Addr().String()
}

// startPlugin starts the plugin, by the sidecar or beside it, and reads its output.
func (r *room) startPlugin() {
	r.t.Helper()
	stdin := testenv.MustGet(r.cmd.StdinPipe())(r.t)
	stdout := testenv.MustGet(r.cmd.StdoutPipe())(r.t)
	r.cmd.Stderr = r.stderr
	testenv.Must(r.t, r.cmd.Start())
	r.stdin = json.NewEncoder(stdin)
	r.t.Cleanup(func() {
		_ = stdin.Close() // at which the plugin ends, and its sidecar with it
		ended := make(chan struct{})
		go func() { _ = r.cmd.Wait(); close(ended) }() // how is looked at nowhere
		select {
		case <-ended:
		case <-time.After(2 * time.Minute):
			_ = r.cmd.Process.Kill()
			<-ended
		}
	})
	in := json.NewDecoder(stdout)
	if err := in.Decode(&r.hello); err != nil {
		r.t.Fatalf("the plugin says nothing: %v\n%s", err, r.stderr.String())
	}
	go func() {
		for {
			var g gotten
			if in.Decode(&g) != nil {
				return
			}
			r.take(g)
		}
	}()
}

func (r *room) take(g gotten) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results[g.ID+" "+g.Event] = g
	select {
	case r.waiting[g.ID+" "+g.Event] <- g:
	default: // no test waits for another one
	}
}

// expect returns where an event of an attempt arrives.
func (r *room) expect(id, event string) <-chan gotten {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := make(chan gotten, 8)
	r.waiting[id+" "+event] = c
	return c
}

// await waits for an event.
func (r *room) await(c <-chan gotten, what string) gotten {
	r.t.Helper()
	select {
	case g := <-c:
		return g
	case <-time.After(5 * time.Minute):
		r.t.Fatalf("not within five minutes: %s", what)
		return gotten{}
	}
}

func (r *room) environment(name string) string {
	for _, pair := range r.hello.Env {
		if value, ok := strings.CutPrefix(pair, name+"="); ok {
			return value
		}
	}
	return ""
}

// startEnvoy runs Envoy from the bootstrap that is shipped, with this test's
// addresses, name server and authority in it.
func (r *room) startEnvoy() {
	root := testenv.MustGet(testenv.Root())(r.t)
	text := string(testenv.MustGet(os.ReadFile(root + "/configs/envoy/bootstrap.yaml"))(r.t))
	for _, change := range [][2]string{
		{"/run/chaperone/weather", r.world.Dir},
		{"port_value: 15080", "port_value: 0"},
		{"/etc/ssl/certs/ca-certificates.crt", r.world.File("api-ca.pem")},
		{"dns_lookup_family: V4_PREFERRED", fmt.Sprintf(`dns_lookup_family: V4_ONLY, typed_dns_resolver_config: {name: envoy.network.dns_resolver.cares, typed_config: {"@type": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, resolvers: [{socket_address: {address: 127.0.0.1, port_value: %d}}]}}`, r.dns.Addr.Port())},
	} {
		if !strings.Contains(text, change[0]) {
			r.t.Fatalf("the bootstrap does not hold %q", change[0])
		}
		text = strings.ReplaceAll(text, change[0], change[1])
	}
	r.envoy = testenv.MustEnvoy(r.t, testenv.EnvoyConfig{Bootstrap: text})
	r.door = testenv.MustGet(r.envoy.Listener(r.t.Context(), "plugin"))(r.t).String()
}

// shortLease is how long some logins to the database live.
const shortLease = 6 * time.Second

// spare are further credentials, each at a host of its own: ones that must
// never be sent, and those of strange token endpoints.
type spare struct{ host, path, inject string }

func (h *house) spares() []spare {
	var out []spare
	for _, inject := range []string{`{header: X-Key, value: "{v}"}`, `{query: key, value: "{v}"}`, `{cookie: sid, value: "{v}"}`, `{basic: {username: u, password: "{v}"}}`} {
		for name := range badValues() {
			way := strings.TrimLeft(inject, "{")[:5]
			out = append(out, spare{name + "-" + strings.Trim(way, " :") + ".bad.example", "secret/data/bad-" + name, inject})
		}
	}
	out = append(out, spare{"short.lease.example", "database/creds/short", `{basic: {username: "{username}", password: "{password}"}}`})
	for _, way := range []string{"redirect", "slow", "error", "unsaid", "zero", "negative", "huge", "text", "endless"} {
		out = append(out, spare{way + ".tokens.example", "secret/data/oauth2", fmt.Sprintf(`{oauth2: {tokenURL: "TOKENS/%s", caFile: api-ca.pem}}`, way)})
	}
	for _, audience := range []string{"first", "second"} {
		out = append(out, spare{audience + ".tokens.example", "secret/data/oauth2", fmt.Sprintf(`{oauth2: {tokenURL: "TOKENS/audience", audience: %s, caFile: api-ca.pem}}`, audience)})
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
func (r *room) configure(door string) {
	kernel, listen := door, fmt.Sprintf("proxy: %q, ", freeAddress(r.t))
	if door == "envoy" {
		kernel, listen = "off", fmt.Sprintf("extAuthz: %q, ", "unix:"+r.world.File("ext_authz.sock"))
	}
	var hosts strings.Builder
	add := func(name, address string) {
		fmt.Fprintf(&hosts, "%s: [%s], ", name, address)
	}
	for _, k := range r.kinds {
		add(k.name+".good.example", "127.0.0.1")
	}
	for _, s := range r.spares() {
		add(s.host, "127.0.0.1")
	}
	add("evil.example", "127.0.0.2")
	for _, self := range r.selves() {
		add(self.host, "127.0.0.1")
	}
	r.world.Write("sidecar.yaml", fmt.Sprintf(`apiVersion: chaperone.dev/v1alpha1
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
`, kernel, listen, r.metrics, r.dns.Addr, strings.TrimSuffix(hosts.String(), ", "), r.world.Vault.Address))
	r.world.Write("grant.yaml", strings.ReplaceAll(r.grant(door == "envoy"), "TOKENS", fmt.Sprintf("https://127.0.0.1:%d", r.tokens.Addr.Port())))
}

// selves are granted names that resolve to the sidecar's own addresses.
func (r *room) selves() []struct{ host, port string } {
	_, metrics, _ := net.SplitHostPort(r.metrics)
	vault := r.world.Vault.Address[strings.LastIndex(r.world.Vault.Address, ":")+1:]
	return []struct{ host, port string }{{"vault.self.example", vault}, {"metrics.self.example", metrics}}
}

// grant gives every kind of credential a rule of its own. Behind Envoy no rule
// states what Envoy's door does not see to.
func (r *room) grant(envoy bool) string {
	var rules, credentials strings.Builder
	rule := func(id, to, credential string, states string) {
		if envoy {
			states = ""
		}
		fmt.Fprintf(&rules, "  - {id: %s, reason: Tests, to: {%s%s}, methods: [GET, POST, PUT], paths: [\"/v1/**\"], upgrades: [websocket]%s}\n", id, to, states, credential)
	}
	const local = ", addresses: [127.0.0.1/32], tls: {caFile: api-ca.pem, originate: true}"
	for _, k := range r.kinds {
		n := k.name
		hosts := n + ".good.example"
		for _, other := range rebound() {
			hosts += ", " + n + "." + other.name + ".example"
		}
		rule(n, fmt.Sprintf("hosts: [%s], ports: [%s]", hosts, r.names["{P}"]), ", credential: "+n, local)
		path := k.vault
		if path == "" {
			path = "secret/data/" + n
		}
		fmt.Fprintf(&credentials, "  - name: %s\n    vault: {path: %s}\n    inject: %s\n%s", n, path, k.inject, k.extra)
	}
	for i, s := range r.spares() {
		rule(fmt.Sprintf("spare-%d", i), fmt.Sprintf("hosts: [%s], ports: [%s]", s.host, r.names["{P}"]), fmt.Sprintf(", credential: spare-%d", i), local)
		fmt.Fprintf(&credentials, "  - name: spare-%d\n    vault: {path: %s}\n    inject: %s\n", i, s.path, s.inject)
	}
	rule("evil", "hosts: [evil.example], ports: ["+r.names["{P}"]+"]", "", ", addresses: [127.0.0.2/32], tls: {caFile: api-ca.pem, originate: true}")
	rule("evil-in-clear", "scheme: http, hosts: [evil.example], ports: ["+r.names["{CLEAR}"]+"]", "", ", addresses: [127.0.0.2/32]")
	for _, self := range r.selves() {
		rule(strings.ReplaceAll(self.host, ".", "-"), "scheme: http, hosts: ["+self.host+"], ports: ["+self.port+"]", "", ", addresses: [127.0.0.1/32]")
	}
	if envoy {
		fmt.Fprintf(&rules, "  - {id: stated, reason: Tests, to: {hosts: [stated.good.example], ports: [%s], addresses: [127.0.0.1/32]}, methods: [GET], paths: [\"/v1/**\"], credential: header}\n", r.names["{P}"])
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
