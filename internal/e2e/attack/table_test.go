package attack

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
	"github.com/chaperone-proxy/chaperone/internal/testenv/scenario"
	"github.com/chaperone-proxy/chaperone/proxy/scrub"
)

// plannedAttempt is an attempt, with the case, the ingress and the credential it was
// made of.
type plannedAttempt struct {
	attempt
	attackCase attackCase
	ingress    ingress
	kind       credentialKind
}

func (t plannedAttempt) String() string {
	return fmt.Sprintf("%d %s; %s; %s (%s)", t.attackCase.item, t.attackCase.name, t.ingress.name, t.kind.name, t.ID)
}

// render makes an attempt of a case.
func (h *harness) render(p attackCase, in ingress, k credentialKind, id string) plannedAttempt {
	names := map[string]string{
		"{G}": k.name + ".good.example:" + h.names["{P}"], "{g}": k.name + ".good.example", "{U}": strings.ToUpper(k.name) + ".Good.Example",
		"{K}": k.name, "{ID}": id, "{ECHO}": "echo", "{REDIRECT}": "redirect",
	}
	if in.envoy {
		names["{ECHO}"], names["{REDIRECT}"] = "quiet", "away"
	}
	maps.Copy(names, h.names)
	maps.Copy(names, h.ownNames)
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		pairs = append(pairs, name, names[name])
	}
	fill := strings.NewReplacer(pairs...).Replace
	or := func(text, otherwise string) string {
		if text == "" {
			text = otherwise
		}
		return fill(text)
	}
	to, path := or(p.to, "{G}"), or(p.path, "/v1/{ECHO}/{ID}")
	host, method := or(p.host, to), or(p.method, "GET")
	name, _, _ := strings.Cut(to, ":")
	t := plannedAttempt{attackCase: p, ingress: in, kind: k, attempt: attempt{ID: id, Waits: strings.HasPrefix(p.to, "slow."), H2: in.h2, TLS: in.tls, SNI: or(p.sni, name)}}
	if t.SNI == "-" {
		t.SNI = ""
	}
	target := path
	switch {
	case in.envoy:
		t.Dial = h.door
	case in.redirected:
		t.Dial = to
	case in.tunnel:
		t.Tunnel = to
	}
	if in.explicit() || in.envoy {
		target = "http://" + to + path
	}
	for _, piece := range p.after {
		t.After = append(t.After, []byte(fill(piece)))
	}
	if in.h2 {
		t.fields(p, h, to, host, method, path, fill)
		return t
	}
	if p.text != "" {
		t.Text = []byte(fill(strings.NewReplacer("{T}", target, "{H}", host).Replace(p.text)))
		if in.explicit() {
			head, rest, _ := strings.Cut(string(t.Text), "\r\n")
			t.Text = []byte(head + "\r\n" + h.login + rest)
		}
		return t
	}
	t.lines(p, h, method+" "+target+" HTTP/1.1\r\nHost: "+host+"\r\nX-Attempt: "+id+"\r\n", fill)
	return t
}

// lines writes the request as HTTP/1.1.
func (t *plannedAttempt) lines(p attackCase, h *harness, head string, fill func(string) string) {
	var b bytes.Buffer
	b.WriteString(head)
	if t.ingress.explicit() {
		b.WriteString(h.login)
	}
	if !strings.Contains(strings.Join(p.heads, " "), "Upgrade") {
		b.WriteString("Connection: close\r\n")
	}
	for _, line := range p.heads {
		b.WriteString(fill(line) + "\r\n")
	}
	switch body := fill(p.body); {
	case len(p.tail) > 0:
		fmt.Fprintf(&b, "Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n", len(body), body)
		for _, line := range p.tail {
			b.WriteString(fill(line) + "\r\n")
		}
		b.WriteString("\r\n")
	case body != "":
		fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(body), body)
	default:
		b.WriteString("\r\n")
	}
	t.Text = b.Bytes()
}

// fields makes the request's fields of HTTP/2. The host inside a
// connection with a name is :authority there.
func (t *plannedAttempt) fields(p attackCase, h *harness, to, host, method, path string, fill func(string) string) {
	scheme := "http"
	if t.TLS {
		scheme = "https"
	}
	authority := to
	if t.ingress.tunnel || t.ingress.redirected {
		authority = host
	}
	t.Fields = [][2]string{{":method", method}, {":scheme", scheme}, {":authority", authority}, {":path", path}}
	if authority != host {
		t.Fields = append(t.Fields, [2]string{"host", host})
	}
	t.Fields = append(t.Fields, [2]string{"x-attempt", t.ID})
	if name, login, ok := strings.Cut(strings.TrimSpace(h.login), ": "); ok && t.ingress.explicit() {
		t.Fields = append(t.Fields, [2]string{strings.ToLower(name), login})
	}
	split := func(lines []string) (out [][2]string) {
		for _, line := range lines {
			line = fill(line)
			at := strings.Index(line[1:], ":") + 1
			out = append(out, [2]string{strings.ToLower(line[:at]), strings.TrimPrefix(line[at+1:], " ")})
		}
		return out
	}
	for _, field := range split(p.heads) {
		if strings.HasPrefix(field[0], ":") {
			t.Fields = slices.Insert(t.Fields, 0, field)
			continue
		}
		t.Fields = append(t.Fields, field)
	}
	t.Body, t.Tail = []byte(fill(p.body)), split(p.tail)
}

// plan makes every attempt of this door, and lists those that do not apply with the reason.
func (h *harness) plan(door string) (attempts []plannedAttempt, skipped map[string]int) {
	skipped = map[string]int{}
	for i, p := range attackCases() {
		for j, in := range ingresses(door) {
			if p.inapplicable != nil {
				if reason := p.inapplicable(in); reason != "" {
					skipped[fmt.Sprintf("item %d, %s: %s", p.item, in.name, reason)]++
					continue
				}
			}
			for n, k := range h.kinds {
				share := len(h.kinds)
				if own := p.item == 8 || p.item == 9 || p.item == 16; !p.anyKind && (door != "off" || own) {
					share = p.oneIn
				}
				if p.kinds != "" && p.kinds != k.name || p.kinds == "" && (i+j+n)%max(share, 1) != 0 {
					continue
				}
				attempts = append(attempts, h.render(p, in, k, fmt.Sprintf("%s-%d-%d-%s-x", door, i, j, k.name)))
			}
		}
	}
	return attempts, skipped
}

// outcome is where an attempt arrived, with its answer and record.
type outcome struct {
	good, evil int
	reason     string
	text       string
}

var reasonPattern = regexp.MustCompile(`chaperone\.dev/reasons/([a-z_]+)`)

func (o outcome) String() string {
	return fmt.Sprintf("%d good, %d evil, reason %q: %.900q", o.good, o.evil, o.reason, o.text)
}

// matches compares with what is wanted.
func (o outcome) matches(want string) bool {
	for alternative := range strings.SplitSeq(want, "|") {
		where, reason, _ := strings.Cut(alternative, " ")
		switch {
		case where == "good" && o.good == 1 && o.evil == 0, where == "evil" && o.evil == 1 && o.good == 0,
			where == "nobody" && o.good+o.evil == 0,
			where == "misplaced" && o.reason == "credential_misplaced",
			where == "goods" && o.good > 0 && o.evil == 0,
			where == "refused" && o.good+o.evil == 0 && o.reason != "" && (reason == "" || reason == o.reason):
			return true
		}
	}
	return false
}

// upstreamRequest is a request and the connection that it came on.
type upstreamRequest struct {
	testenv.WitnessedRequest
	connection testenv.Witnessed
	host       int
}

// requestsByAttempt returns the requests at witnesses by the attempts that they are of.
func requestsByAttempt(witnesses ...*testenv.Witness) map[string][]upstreamRequest {
	id := regexp.MustCompile(`(?:required|off|envoy)-\d+-\d+-[a-z0-9]+-x`)
	out := map[string][]upstreamRequest{}
	for i, w := range witnesses {
		for _, c := range w.Connections() {
			for _, r := range c.Requests {
				of := r.Header.Get("X-Attempt")
				if found := id.FindString(r.Target); found != "" {
					of = found
				}
				out[of] = append(out[of], upstreamRequest{r, c, i})
			}
		}
	}
	return out
}

// TestAttackList makes every attack of the list through every door, with every
// kind of credential. A credential must not reach the plugin, by any way, or a host
// that is not its own: everything that these received is searched afterwards for all
// credentials, in every spelling.
func TestAttackList(t *testing.T) {
	e := newEnv(t)
	for _, door := range []string{"off", "required", "envoy"} {
		t.Run(door, func(t *testing.T) {
			t.Parallel()
			if door == "required" {
				testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF())
			}
			if door == "envoy" {
				testenv.Require(t, testenv.EnvoyServer())
			}
			h := e.open(t, door)
			h.flood(door)
			leaked := h.attackAll(door)
			h.leaseExpiry(door)
			h.issuedCredentials()
			h.revokeWhileStreaming(door)
			h.searchSecrets(door, leaked)
		})
	}
}

// attackAll makes the attempts and compares. It returns the one whose answer does
// hold a credential, as documented for Envoy's door.
func (h *harness) attackAll(door string) (leaked string) {
	attempts, skipped := h.plan(door)
	results := h.do(attempts)
	good, evil := requestsByAttempt(h.good), requestsByAttempt(h.evil...)
	failed := map[string]int{}
	for _, a := range attempts {
		g := results[a.ID]
		o := outcome{good: len(good[a.ID]), evil: len(evil[a.ID]), text: string(g.Got) + g.Err}
		// An attempt that was refused after it had arrived was made again.
		if repeats := h.repeats[a.ID]; o.good > 1 && o.good <= 1+repeats {
			o.good = 1
		}
		if found := reasonPattern.FindStringSubmatch(o.text); found != nil {
			o.reason = found[1]
		}
		want := a.wanted()
		if !o.matches(want) {
			if failed[fmt.Sprint(a.attackCase.name)]++; failed[a.attackCase.name] <= 3 {
				h.t.Errorf("%s: want %s, got %s", a, want, o)
			}
		}
		if strings.Contains(a.attackCase.name, "Envoy forwards") && !a.ingress.h2 {
			if leaked = a.ID; !strings.Contains(o.text, headerCanary) {
				h.t.Errorf("%s: got a scrubbed answer where Envoy's answers are documented as not scrubbed: %s", a, o)
			}
		}
		for _, at := range good[a.ID] {
			h.checkUpstreamRequest(a, at)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		h.t.Logf("%4d× %s", failed[name], name)
	}
	for _, reason := range slices.Sorted(maps.Keys(skipped)) {
		h.t.Log("does not apply: ", reason)
	}
	h.t.Logf("%d attempts", len(attempts))
	return leaked
}

// flood is item 25: connections that send the beginning of a request, or of a
// tunnel's, and no more. Everything else is tried while they are there.
func (h *harness) flood(door string) {
	for i, text := range []string{"GET http://header.good.example/v1/ HT", "CONNECT header.good.example:" + h.names["{P}"] + " HTTP/1.1\r\nHost: header.good.example:" + h.names["{P}"] + "\r\n" + h.login + "\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n"} {
		f := plannedAttempt{attempt: attempt{ID: fmt.Sprintf("%s-flood-%d", door, i), Dial: h.door, Flood: 200, Text: []byte(text)}}
		if g := h.do([]plannedAttempt{f})[f.ID]; g.Err != "<nil>" {
			h.t.Errorf("%s: %s", f.ID, g.Err)
		}
	}
}

// leaseExpiry is item 22, as far as it needs no clock of its own (the package vault has
// one for its tests): a login lives for seconds only, and each that arrives is
// one that the database takes.
func (h *harness) leaseExpiry(door string) {
	if door != "off" {
		return // the broker is the same
	}
	in := ingresses(door)[4]
	for i, until := 0, time.Now().Add(2*shortLease); time.Now().Before(until); i++ {
		a := h.render(attackCase{to: "short.lease.example:{P}"}, in, h.kinds[0], fmt.Sprintf("off-900-%d-lease-x", i))
		if g := h.do([]plannedAttempt{a})[a.ID]; !bytes.Contains(g.Got, []byte("200 OK")) {
			h.t.Errorf("with a lease that is short: %s%s", g.Got, g.Err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	h.env.mu.Lock()
	defer h.env.mu.Unlock()
	if len(h.logins) < 2 {
		h.t.Errorf("%d logins within two lives of one", len(h.logins))
	}
	for user, err := range h.logins {
		if err != nil {
			h.t.Errorf("%s arrived after it was revoked: %v", user, err)
		}
	}
}

// issuedCredentials is the rest of item 25: however much is asked for, a sidecar leases one
// user of the database and gets one token.
func (h *harness) issuedCredentials() {
	doors := 3
	if leases := testenv.MustGet(h.scenario.Vault.Leases(h.t.Context(), "database/creds/weather"))(h.t); len(leases) > doors {
		h.t.Errorf("%d users of the database", len(leases))
	}
	asked := map[string]int{}
	for _, c := range h.tokens.Connections() {
		for _, q := range c.Requests {
			asked[q.Target]++
		}
	}
	if asked["/token"] > doors || asked["/audience"] > 2*doors {
		h.t.Errorf("the identity provider was asked %v", asked)
	}
}

// revokeWhileStreaming is item 21: while answers flow, and a token is being fetched, access is
// revoked. Streams through the sidecar end at once; those through Envoy do not.
func (h *harness) revokeWhileStreaming(door string) {
	var held []plannedAttempt
	for i, in := range ingresses(door) {
		for j, p := range []attackCase{{path: "/v1/stream/{ID}"}, {path: "/v1/ws/stream-{ID}", heads: websocketHeads()}} {
			if in.h2 && j == 1 { // an upgrade is another thing there
				continue
			}
			k := h.kinds[(i+3*j)%len(h.kinds)]
			if in.envoy {
				k = h.kinds[j]
			}
			a := h.render(p, in, k, fmt.Sprintf("%s-99%d-%d-%s-x", door, j, i, k.name))
			a.Hold = true
			held = append(held, a)
		}
	}
	begun, done := map[string]<-chan attemptResult{}, map[string]<-chan attemptResult{}
	for _, a := range held {
		begun[a.ID], done[a.ID] = h.expect(a.ID, "begun"), h.expect(a.ID, "done")
		testenv.Must(h.t, h.stdin.Encode(a.attempt))
	}
	for _, a := range held {
		h.await(begun[a.ID], a.String()+" begins")
	}
	minting := h.render(attackCase{to: "slow.tokens.example:{P}"}, ingresses(door)[0], h.kinds[0], door+"-998-0-mint-x")
	minted := h.expect(minting.ID, "done")
	testenv.Must(h.t, h.stdin.Encode(minting.attempt))
	out := h.scenario.Revoke()
	for _, a := range held {
		if !a.ingress.envoy {
			h.await(done[a.ID], a.String()+" is cut")
			continue
		}
		flows := h.expect(a.ID, "flows")
		h.await(flows, a.String()+" continues, as documented for Envoy's own streams") // one may have been on its way
		h.await(flows, a.String()+" goes on")
	}
	if door != "envoy" && out.Cut < len(held) {
		h.t.Errorf("%d streams, and %+v", len(held), out)
	}
	h.await(minted, "an answer to the request that waited for a token")
	var after []plannedAttempt
	for i, in := range ingresses(door) {
		for _, k := range h.kinds {
			after = append(after, h.render(attackCase{}, in, k, fmt.Sprintf("%s-997-%d-%s-x", door, i, k.name)))
		}
	}
	h.do(after)
	good := requestsByAttempt(h.good)
	for _, a := range append(after, minting) {
		if len(good[a.ID]) > 0 {
			h.t.Errorf("%s: arrived after the revocation", a)
		}
	}
}

// do has the plugin make the attempts.
func (h *harness) do(attempts []plannedAttempt) map[string]attemptResult {
	h.t.Helper()
	waits := map[string]<-chan attemptResult{}
	slices.SortStableFunc(attempts, func(a, b plannedAttempt) int { // waiting attempts first
		if a.Waits == b.Waits {
			return 0
		} else if a.Waits {
			return -1
		}
		return 1
	})
	for _, a := range attempts {
		waits[a.ID] = h.expect(a.ID, "done")
	}
	for _, a := range attempts {
		testenv.Must(h.t, h.stdin.Encode(a.attempt))
	}
	out := map[string]attemptResult{}
	for _, a := range attempts {
		out[a.ID] = h.await(waits[a.ID], a.String())
	}
	// The connections of the flood take nearly all the memory that there is, so that
	// some attempts are refused for want of it, or their connections closed. A client
	// makes them again.
	for _, a := range attempts {
		for began := time.Now(); outOfMemory(a, out[a.ID]) && time.Since(began) < patience; {
			time.Sleep(100 * time.Millisecond)
			h.repeats[a.ID]++
			again := h.expect(a.ID, "done")
			testenv.Must(h.t, h.stdin.Encode(a.attempt))
			out[a.ID] = h.await(again, a.String())
		}
	}
	return out
}

// wanted returns what is to become of the attempt.
func (t *plannedAttempt) wanted() string {
	want := t.attackCase.want
	if t.ingress.envoy && t.attackCase.envoy != "" {
		want = t.attackCase.envoy
	}
	if t.ingress.envoy && !t.kind.envoy && strings.Contains(want, "good") {
		want = "refused not_enforceable_here|nobody"
	}
	return want
}

// outOfMemory reports whether an attempt was refused for want of memory, or may
// have been by the end of its connection.
func outOfMemory(a plannedAttempt, g attemptResult) bool {
	if a.wanted() == "good" && len(g.Got) == 0 {
		return true
	}
	return bytes.Contains(g.Got, []byte("chaperone.dev/reasons/not_ready")) && bytes.Contains(g.Got, []byte("memory"))
}

// checkUpstreamRequest checks a request that arrived where it may: it holds the credential
// once, and in its place nothing of the plugin's.
func (h *harness) checkUpstreamRequest(a plannedAttempt, at upstreamRequest) {
	h.t.Helper()
	k := h.kindOf(at.Host)
	if k == nil {
		return
	}
	carried := k.carried(at.WitnessedRequest, at.connection)
	if len(carried) != 1 || carried[0] == "" || strings.Contains(carried[0], pluginValue) {
		h.t.Errorf("%s: the credential arrived as %q: %s %v", a, carried, at.Target, at.Header)
		return
	}
	if k.name == "jwt" || k.name == "database" { // Vault made it
		h.addSecret(k.name, carried[0])
	}
	if k.fields != nil && k.name != "mtls" && !h.hasSecret(k.name, carried[0]) {
		h.t.Errorf("%s: another credential arrived: %q", a, carried[0])
	}
	for _, name := range []string{"Proxy-Authorization", "X-Forwarded-Host", "X-Forwarded-For", "Forwarded", "X-Original-Url", "X-Http-Method-Override", "Proxy-Connection", "Keep-Alive"} {
		if value, ok := at.Header[name]; ok {
			h.t.Errorf("%s: arrived with %s: %q", a, name, value)
		}
	}
	for name := range at.Header {
		if strings.Contains(name, "_") && (strings.EqualFold(name, "x_api_key") && k.name == "placeholder" || strings.EqualFold(name, "x_db_password") && k.name == "database" || k.name == "sigv4" && strings.EqualFold(name, "x_amz_security_token")) {
			h.t.Errorf("%s: arrived with %s", a, name)
		}
	}
	// Behind Envoy neither bodies nor trailers pass the sidecar.
	if value := fmt.Sprint(at.Trailer); !a.ingress.envoy && strings.Contains(value, pluginValue) && (strings.Contains(value, "Authorization") || k.name == "placeholder" && strings.Contains(value, "X-Api-Key")) {
		h.t.Errorf("%s: arrived with the trailer %s", a, value)
	}
}

// searchSecrets looks for every secret wherever it must not be.
func (h *harness) searchSecrets(door, leaked string) {
	places := map[string][]byte{
		"the plugin's environment": []byte(strings.Join(h.view.Env, "\n")), "files that the plugin read": []byte(fmt.Sprint(h.view.Files)),
		"the standard error": []byte(h.stderr.String()), "the log": []byte(h.scenario.Read("state/audit.jsonl")), "the status": []byte(h.scenario.Chaperone("status", "--config", h.scenario.File("sidecar.yaml"), "--output", "json").Stdout),
		"the usage":   []byte(h.scenario.Chaperone("usage", "--config", h.scenario.File("sidecar.yaml"), "--output", "json").Stdout),
		"the metrics": []byte(metricsOf(h.t, h.metrics)),
	}
	if h.sidecar != nil { // it ends and prints every stack
		testenv.Must(h.t, h.sidecar.Cmd.Process.Signal(syscall.SIGABRT))
		h.sidecar.Wait()
		scenario.Contains(h.t, h.sidecar.Output.String(), "goroutine 1 ")
		places["the sidecar's output"] = []byte(h.sidecar.Output.String())
	}
	if h.envoy != nil {
		places["Envoy's output"] = []byte(h.envoy.Log())
	}
	var answers bytes.Buffer
	h.mu.Lock()
	results := maps.Clone(h.results)
	h.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(results)) {
		if answer := results[id]; answer.ID != leaked {
			fmt.Fprintf(&answers, "\n[%s]\n%s\n%s", id, decompressed(answer.Got), answer.Err)
		}
	}
	places["what the plugin got"] = answers.Bytes()
	for i, evil := range h.evil {
		var text bytes.Buffer
		for _, c := range evil.Connections() {
			text.Write(c.Text())
			if len(c.Certificates) > 0 {
				h.t.Errorf("an evil host was shown a certificate: %.200q", c.Plain)
			}
			if strings.Contains(c.SNI, "good.example") || strings.Contains(c.SNI, ".tokens.") {
				h.t.Errorf("an evil host was taken for %s", c.SNI)
			}
			if c.Early {
				h.t.Errorf("an evil host was sent early data: %.200q", c.Plain)
			}
		}
		places[fmt.Sprintf("evil host %d", i)] = text.Bytes()
	}
	others := map[string]*bytes.Buffer{}
	for _, c := range h.good.Connections() {
		owner := ""
		for _, q := range c.Requests {
			name := strings.ToLower(q.Host)
			if k := h.kindOf(q.Host); k != nil {
				name = k.name
			}
			if owner != "" && owner != name && door != "envoy" {
				h.t.Errorf("a connection of %s is used for %s", owner, name)
			}
			owner = name
		}
		if strings.Contains(owner, ".tokens.example:") {
			owner = "oauth2" // the same client's
		}
		if others[owner] == nil {
			others[owner] = new(bytes.Buffer)
		}
		others[owner].Write(c.Text())
	}
	for owner, text := range others {
		places["the good host of "+owner] = text.Bytes()
	}
	for where, text := range places {
		h.mustNotHold(where, text)
	}
}

// mustNotHold searches one place for everybody's secrets.
func (h *harness) mustNotHold(where string, text []byte) {
	h.env.mu.Lock()
	defer h.env.mu.Unlock()
	for owner, secrets := range h.secrets {
		if where == "the good host of "+owner || owner == "the placeholder" && where == "the plugin's environment" {
			continue
		}
		for secret := range secrets {
			how := spellingIn(text, secret)
			if needles := scrub.New(secret); how == "" && needles.InBytes(text) {
				how = "some way"
			}
			if how == "" {
				continue
			}
			at := bytes.Index(text, []byte(secret[:min(len(secret), 8)]))
			from := max(at-300, 0)
			h.t.Errorf("%s has the secret of %s, spelled %s: %.600q", where, owner, how, text[from:])
		}
	}
}
