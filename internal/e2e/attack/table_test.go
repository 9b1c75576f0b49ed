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

// tried is an attempt and what it was made of.
type tried struct {
	attempt
	probe probe
	way   lane
	kind  kind
}

func (t tried) String() string {
	return fmt.Sprintf("%d %s; %s; %s (%s)", t.probe.item, t.probe.name, t.way.name, t.kind.name, t.ID)
}

// render makes an attempt of a probe.
func (r *room) render(p probe, w lane, k kind, id string) tried {
	names := map[string]string{
		"{G}": k.name + ".good.example:" + r.names["{P}"], "{g}": k.name + ".good.example", "{U}": strings.ToUpper(k.name) + ".Good.Example",
		"{K}": k.name, "{ID}": id, "{ECHO}": "echo", "{REDIRECT}": "redirect",
	}
	if w.envoy {
		names["{ECHO}"], names["{REDIRECT}"] = "quiet", "away"
	}
	maps.Copy(names, r.names)
	maps.Copy(names, r.own)
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
	t := tried{probe: p, way: w, kind: k, attempt: attempt{ID: id, Waits: strings.HasPrefix(p.to, "slow."), H2: w.h2, TLS: w.tls, SNI: or(p.sni, name)}}
	if t.SNI == "-" {
		t.SNI = ""
	}
	target := path
	switch {
	case w.envoy:
		t.Dial = r.door
	case w.redirected:
		t.Dial = to
	case w.tunnel:
		t.Tunnel = to
	}
	if w.explicit() || w.envoy {
		target = "http://" + to + path
	}
	for _, piece := range p.after {
		t.After = append(t.After, []byte(fill(piece)))
	}
	if w.h2 {
		t.fields(p, r, to, host, method, path, fill)
		return t
	}
	if p.text != "" {
		t.Text = []byte(fill(strings.NewReplacer("{T}", target, "{H}", host).Replace(p.text)))
		if w.explicit() {
			head, rest, _ := strings.Cut(string(t.Text), "\r\n")
			t.Text = []byte(head + "\r\n" + r.login + rest)
		}
		return t
	}
	t.lines(p, r, method+" "+target+" HTTP/1.1\r\nHost: "+host+"\r\nX-Attempt: "+id+"\r\n", fill)
	return t
}

// lines writes the request as HTTP/1.1.
func (t *tried) lines(p probe, r *room, head string, fill func(string) string) {
	var b bytes.Buffer
	b.WriteString(head)
	if t.way.explicit() {
		b.WriteString(r.login)
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
func (t *tried) fields(p probe, r *room, to, host, method, path string, fill func(string) string) {
	scheme := "http"
	if t.TLS {
		scheme = "https"
	}
	authority := to
	if t.way.tunnel || t.way.redirected {
		authority = host
	}
	t.Fields = [][2]string{{":method", method}, {":scheme", scheme}, {":authority", authority}, {":path", path}}
	if authority != host {
		t.Fields = append(t.Fields, [2]string{"host", host})
	}
	t.Fields = append(t.Fields, [2]string{"x-attempt", t.ID})
	if name, login, ok := strings.Cut(strings.TrimSpace(r.login), ": "); ok && t.way.explicit() {
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

// all makes every attempt of this door, and lists those that do not apply with the reason.
func (r *room) all(door string) (attempts []tried, skipped map[string]int) {
	skipped = map[string]int{}
	for i, p := range probes() {
		for j, w := range lanes(door) {
			if p.not != nil {
				if reason := p.not(w); reason != "" {
					skipped[fmt.Sprintf("item %d, %s: %s", p.item, w.name, reason)]++
					continue
				}
			}
			for n, k := range r.kinds {
				share := len(r.kinds)
				if own := p.item == 8 || p.item == 9 || p.item == 16; !p.any && (door != "off" || own) {
					share = p.share
				}
				if p.kinds != "" && p.kinds != k.name || p.kinds == "" && (i+j+n)%max(share, 1) != 0 {
					continue
				}
				attempts = append(attempts, r.render(p, w, k, fmt.Sprintf("%s-%d-%d-%s-x", door, i, j, k.name)))
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

// is compares with what is wanted.
func (o outcome) is(want string) bool {
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

// arrived is a request and the connection that it came on.
type arrived struct {
	testenv.WitnessedRequest
	on   testenv.Witnessed
	host int
}

// seen returns the requests at witnesses by the attempts that they are of.
func seen(witnesses ...*testenv.Witness) map[string][]arrived {
	id := regexp.MustCompile(`(?:required|off|envoy)-\d+-\d+-[a-z0-9]+-x`)
	out := map[string][]arrived{}
	for i, w := range witnesses {
		for _, c := range w.Connections() {
			for _, r := range c.Requests {
				of := r.Header.Get("X-Attempt")
				if found := id.FindString(r.Target); found != "" {
					of = found
				}
				out[of] = append(out[of], arrived{r, c, i})
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
	h := newHouse(t)
	for _, door := range []string{"off", "required", "envoy"} {
		t.Run(door, func(t *testing.T) {
			t.Parallel()
			if door == "required" {
				testenv.Require(t, testenv.Superuser(), testenv.CgroupV2(), testenv.BTF())
			}
			if door == "envoy" {
				testenv.Require(t, testenv.EnvoyServer())
			}
			r := h.open(t, door)
			r.flood(door)
			leaked := r.attackAll(door)
			r.lapses(door)
			r.mints()
			r.revoked(door)
			r.search(door, leaked)
		})
	}
}

// attackAll makes the attempts and compares. It returns the one whose answer does
// hold a credential, as documented for Envoy's door.
func (r *room) attackAll(door string) (leaked string) {
	attempts, skipped := r.all(door)
	results := r.do(attempts)
	good, evil := seen(r.good), seen(r.evil...)
	failed := map[string]int{}
	for _, a := range attempts {
		g := results[a.ID]
		o := outcome{good: len(good[a.ID]), evil: len(evil[a.ID]), text: string(g.Got) + g.Err}
		// An attempt that was refused after it had arrived was made again.
		if repeats := r.repeats[a.ID]; o.good > 1 && o.good <= 1+repeats {
			o.good = 1
		}
		if found := reasonPattern.FindStringSubmatch(o.text); found != nil {
			o.reason = found[1]
		}
		want := a.wanted()
		if !o.is(want) {
			if failed[fmt.Sprint(a.probe.name)]++; failed[a.probe.name] <= 3 {
				r.t.Errorf("%s: want %s, got %s", a, want, o)
			}
		}
		if strings.Contains(a.probe.name, "Envoy forwards") && !a.way.h2 {
			if leaked = a.ID; !strings.Contains(o.text, headerCanary) {
				r.t.Errorf("%s: got a scrubbed answer where Envoy's answers are documented as not scrubbed: %s", a, o)
			}
		}
		for _, at := range good[a.ID] {
			r.clean(a, at)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		r.t.Logf("%4d× %s", failed[name], name)
	}
	for _, reason := range slices.Sorted(maps.Keys(skipped)) {
		r.t.Log("does not apply: ", reason)
	}
	r.t.Logf("%d attempts", len(attempts))
	return leaked
}

// flood is item 25: connections that send the beginning of a request, or of a
// tunnel's, and no more. Everything else is tried while they are there.
func (r *room) flood(door string) {
	for i, text := range []string{"GET http://header.good.example/v1/ HT", "CONNECT header.good.example:" + r.names["{P}"] + " HTTP/1.1\r\nHost: header.good.example:" + r.names["{P}"] + "\r\n" + r.login + "\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n"} {
		f := tried{attempt: attempt{ID: fmt.Sprintf("%s-flood-%d", door, i), Dial: r.door, Flood: 200, Text: []byte(text)}}
		if g := r.do([]tried{f})[f.ID]; g.Err != "<nil>" {
			r.t.Errorf("%s: %s", f.ID, g.Err)
		}
	}
}

// lapses is item 22, as far as it needs no clock of its own (the room vault has
// one for its tests): a login lives for seconds only, and each that arrives is
// one that the database takes.
func (r *room) lapses(door string) {
	if door != "off" {
		return // the broker is the same
	}
	w := lanes(door)[4]
	for i, until := 0, time.Now().Add(2*shortLease); time.Now().Before(until); i++ {
		a := r.render(probe{to: "short.lease.example:{P}"}, w, r.kinds[0], fmt.Sprintf("off-900-%d-lease-x", i))
		if g := r.do([]tried{a})[a.ID]; !bytes.Contains(g.Got, []byte("200 OK")) {
			r.t.Errorf("with a lease that is short: %s%s", g.Got, g.Err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	r.house.mu.Lock()
	defer r.house.mu.Unlock()
	if len(r.logins) < 2 {
		r.t.Errorf("%d logins within two lives of one", len(r.logins))
	}
	for user, err := range r.logins {
		if err != nil {
			r.t.Errorf("%s arrived after it was revoked: %v", user, err)
		}
	}
}

// mints is the rest of item 25: however much is asked for, a sidecar leases one
// user of the database and gets one token.
func (r *room) mints() {
	doors := 3
	if leases := testenv.MustGet(r.world.Vault.Leases(r.t.Context(), "database/creds/weather"))(r.t); len(leases) > doors {
		r.t.Errorf("%d users of the database", len(leases))
	}
	asked := map[string]int{}
	for _, c := range r.tokens.Connections() {
		for _, q := range c.Requests {
			asked[q.Target]++
		}
	}
	if asked["/token"] > doors || asked["/audience"] > 2*doors {
		r.t.Errorf("the identity provider was asked %v", asked)
	}
}

// revoked is item 21: while answers flow, and a token is being fetched, access is
// revoked. Streams through the sidecar end at once; those through Envoy do not.
func (r *room) revoked(door string) {
	var held []tried
	for i, w := range lanes(door) {
		for j, p := range []probe{{path: "/v1/stream/{ID}"}, {path: "/v1/ws/stream-{ID}", heads: websocketHeads()}} {
			if w.h2 && j == 1 { // an upgrade is another thing there
				continue
			}
			k := r.kinds[(i+3*j)%len(r.kinds)]
			if w.envoy {
				k = r.kinds[j]
			}
			a := r.render(p, w, k, fmt.Sprintf("%s-99%d-%d-%s-x", door, j, i, k.name))
			a.Hold = true
			held = append(held, a)
		}
	}
	begun, done := map[string]<-chan gotten{}, map[string]<-chan gotten{}
	for _, a := range held {
		begun[a.ID], done[a.ID] = r.expect(a.ID, "begun"), r.expect(a.ID, "done")
		testenv.Must(r.t, r.stdin.Encode(a.attempt))
	}
	for _, a := range held {
		r.await(begun[a.ID], a.String()+" begins")
	}
	minting := r.render(probe{to: "slow.tokens.example:{P}"}, lanes(door)[0], r.kinds[0], door+"-998-0-mint-x")
	minted := r.expect(minting.ID, "done")
	testenv.Must(r.t, r.stdin.Encode(minting.attempt))
	out := r.world.Revoke()
	for _, a := range held {
		if !a.way.envoy {
			r.await(done[a.ID], a.String()+" is cut")
			continue
		}
		flows := r.expect(a.ID, "flows")
		r.await(flows, a.String()+" continues, as documented for Envoy's own streams") // one may have been on its way
		r.await(flows, a.String()+" goes on")
	}
	if door != "envoy" && out.Cut < len(held) {
		r.t.Errorf("%d streams, and %+v", len(held), out)
	}
	r.await(minted, "an answer to the request that waited for a token")
	var after []tried
	for i, w := range lanes(door) {
		for _, k := range r.kinds {
			after = append(after, r.render(probe{}, w, k, fmt.Sprintf("%s-997-%d-%s-x", door, i, k.name)))
		}
	}
	r.do(after)
	good := seen(r.good)
	for _, a := range append(after, minting) {
		if len(good[a.ID]) > 0 {
			r.t.Errorf("%s: arrived after the revocation", a)
		}
	}
}

// do has the plugin make the attempts.
func (r *room) do(attempts []tried) map[string]gotten {
	r.t.Helper()
	waits := map[string]<-chan gotten{}
	slices.SortStableFunc(attempts, func(a, b tried) int { // waiting attempts first
		if a.Waits == b.Waits {
			return 0
		} else if a.Waits {
			return -1
		}
		return 1
	})
	for _, a := range attempts {
		waits[a.ID] = r.expect(a.ID, "done")
	}
	for _, a := range attempts {
		testenv.Must(r.t, r.stdin.Encode(a.attempt))
	}
	out := map[string]gotten{}
	for _, a := range attempts {
		out[a.ID] = r.await(waits[a.ID], a.String())
	}
	// The connections of the flood take nearly all the memory that there is, so that
	// some attempts are refused for want of it, or their connections closed. A client
	// makes them again.
	for _, a := range attempts {
		for began := time.Now(); outOfMemory(a, out[a.ID]) && time.Since(began) < patience; {
			time.Sleep(100 * time.Millisecond)
			r.repeats[a.ID]++
			again := r.expect(a.ID, "done")
			testenv.Must(r.t, r.stdin.Encode(a.attempt))
			out[a.ID] = r.await(again, a.String())
		}
	}
	return out
}

// wanted returns what is to become of the attempt.
func (t *tried) wanted() string {
	want := t.probe.want
	if t.way.envoy && t.probe.envoy != "" {
		want = t.probe.envoy
	}
	if t.way.envoy && !t.kind.envoy && strings.Contains(want, "good") {
		want = "refused not_enforceable_here|nobody"
	}
	return want
}

// outOfMemory reports whether an attempt was refused for want of memory, or may
// have been by the end of its connection.
func outOfMemory(a tried, g gotten) bool {
	if a.wanted() == "good" && len(g.Got) == 0 {
		return true
	}
	return bytes.Contains(g.Got, []byte("chaperone.dev/reasons/not_ready")) && bytes.Contains(g.Got, []byte("memory"))
}

// clean checks a request that arrived where it may: it holds the credential
// once, and in its place nothing of the plugin's.
func (r *room) clean(a tried, at arrived) {
	r.t.Helper()
	k := r.kindOf(at.Host)
	if k == nil {
		return
	}
	carried := k.carried(at.WitnessedRequest, at.on)
	if len(carried) != 1 || carried[0] == "" || strings.Contains(carried[0], mine) {
		r.t.Errorf("%s: the credential arrived as %q: %s %v", a, carried, at.Target, at.Header)
		return
	}
	if k.name == "jwt" || k.name == "database" { // Vault made it
		r.keep(k.name, carried[0])
	}
	if k.fields != nil && k.name != "mtls" && !r.owns(k.name, carried[0]) {
		r.t.Errorf("%s: another credential arrived: %q", a, carried[0])
	}
	for _, name := range []string{"Proxy-Authorization", "X-Forwarded-Host", "X-Forwarded-For", "Forwarded", "X-Original-Url", "X-Http-Method-Override", "Proxy-Connection", "Keep-Alive"} {
		if value, ok := at.Header[name]; ok {
			r.t.Errorf("%s: arrived with %s: %q", a, name, value)
		}
	}
	for name := range at.Header {
		if strings.Contains(name, "_") && (strings.EqualFold(name, "x_api_key") && k.name == "placeholder" || strings.EqualFold(name, "x_db_password") && k.name == "database" || k.name == "sigv4" && strings.EqualFold(name, "x_amz_security_token")) {
			r.t.Errorf("%s: arrived with %s", a, name)
		}
	}
	// Behind Envoy neither bodies nor trailers pass the sidecar.
	if value := fmt.Sprint(at.Trailer); !a.way.envoy && strings.Contains(value, mine) && (strings.Contains(value, "Authorization") || k.name == "placeholder" && strings.Contains(value, "X-Api-Key")) {
		r.t.Errorf("%s: arrived with the trailer %s", a, value)
	}
}

// search looks for every secret wherever it must not be.
func (r *room) search(door, leaked string) {
	places := map[string][]byte{
		"the plugin's environment": []byte(strings.Join(r.hello.Env, "\n")), "files that the plugin read": []byte(fmt.Sprint(r.hello.Files)),
		"the standard error": []byte(r.stderr.String()), "the log": []byte(r.world.Read("state/audit.jsonl")), "the status": []byte(r.world.Chaperone("status", "--config", r.world.File("sidecar.yaml"), "--output", "json").Stdout),
		"the usage":   []byte(r.world.Chaperone("usage", "--config", r.world.File("sidecar.yaml"), "--output", "json").Stdout),
		"the metrics": []byte(metricsOf(r.t, r.metrics)),
	}
	if r.sidecar != nil { // it ends and prints every stack
		testenv.Must(r.t, r.sidecar.Cmd.Process.Signal(syscall.SIGABRT))
		r.sidecar.Wait()
		scenario.Contains(r.t, r.sidecar.Output.String(), "goroutine 1 ")
		places["the sidecar's output"] = []byte(r.sidecar.Output.String())
	}
	if r.envoy != nil {
		places["Envoy's output"] = []byte(r.envoy.Log())
	}
	var answers bytes.Buffer
	r.mu.Lock()
	results := maps.Clone(r.results)
	r.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(results)) {
		if answer := results[id]; answer.ID != leaked {
			fmt.Fprintf(&answers, "\n[%s]\n%s\n%s", id, unpacked(answer.Got), answer.Err)
		}
	}
	places["what the plugin got"] = answers.Bytes()
	for i, evil := range r.evil {
		var text bytes.Buffer
		for _, c := range evil.Connections() {
			text.Write(c.Text())
			if len(c.Certificates) > 0 {
				r.t.Errorf("an evil host was shown a certificate: %.200q", c.Plain)
			}
			if strings.Contains(c.SNI, "good.example") || strings.Contains(c.SNI, ".tokens.") {
				r.t.Errorf("an evil host was taken for %s", c.SNI)
			}
			if c.Early {
				r.t.Errorf("an evil host was sent early data: %.200q", c.Plain)
			}
		}
		places[fmt.Sprintf("evil host %d", i)] = text.Bytes()
	}
	others := map[string]*bytes.Buffer{}
	for _, c := range r.good.Connections() {
		owner := ""
		for _, q := range c.Requests {
			name := strings.ToLower(q.Host)
			if k := r.kindOf(q.Host); k != nil {
				name = k.name
			}
			if owner != "" && owner != name && door != "envoy" {
				r.t.Errorf("a connection of %s is used for %s", owner, name)
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
		r.mustNotHold(where, text)
	}
}

// mustNotHold searches one place for everybody's secrets.
func (r *room) mustNotHold(where string, text []byte) {
	r.house.mu.Lock()
	defer r.house.mu.Unlock()
	for owner, secrets := range r.secrets {
		if where == "the good host of "+owner || owner == "the stand-in" && where == "the plugin's environment" {
			continue
		}
		for secret := range secrets {
			how := holds(text, secret)
			if needles := scrub.New(secret); how == "" && needles.InBytes(text) {
				how = "some way"
			}
			if how == "" {
				continue
			}
			at := bytes.Index(text, []byte(secret[:min(len(secret), 8)]))
			from := max(at-300, 0)
			r.t.Errorf("%s has the secret of %s, spelled %s: %.600q", where, owner, how, text[from:])
		}
	}
}
