package authz

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// credential checks and compiles one credential of the grant. names are those
// of the credentials before it.
func (k grantCheck) credential(i int, names map[string]bool) *credentialSpec {
	spec := &k.g.Credentials[i]
	path := fmt.Sprintf("spec.credentials[%d]", i)
	checkName(spec.Name, path+".name", "credential", names, k.report)
	out := &credentialSpec{ref: CredentialRef{
		Plugin: k.g.Plugin, Grant: k.g.Name, Name: spec.Name,
		Path: spec.Vault.Path, TrimNewline: spec.Vault.TrimNewline, Parameters: canonicalJSON(spec.Vault.Params),
	}}
	k.vaultPath(path+".vault", spec)
	for _, guardrail := range k.guardrails {
		life := time.Duration(guardrail.Ceilings.CredentialLifetime)
		if life > 0 && (out.ref.Lifetime == 0 || life < out.ref.Lifetime) {
			out.ref.Lifetime = life
		}
	}
	k.inject(path+".inject", spec.Inject, out)
	k.notSecret(path+".vault.notSecret", spec, out)
	k.placeholder(i, out)
	return out
}

// notSecret checks the fields that are no secrets, which templates of a value may
// have beside one that is.
func (k grantCheck) notSecret(path string, spec *CredentialSpec, out *credentialSpec) {
	out.notSecret = spec.Vault.NotSecret
	if len(out.notSecret) == 0 {
		return
	}
	if in := spec.Inject; in.Header+in.Query+in.Cookie == "" && in.Basic == nil {
		k.report(path, "goes with header, query, cookie and basic only")
		return
	}
	for i, field := range out.notSecret {
		if !slices.Contains(out.fields, field) {
			k.report(fmt.Sprintf("%s[%d]", path, i), "%q is no field that inject takes; name one of %s", clip(field), clip(strings.Join(out.fields, ", ")))
		}
	}
	if !slices.ContainsFunc(out.fields, func(field string) bool { return !slices.Contains(out.notSecret, field) }) {
		k.report(path, "leaves nothing that is secret; leave out what is")
	}
}

// canonicalJSON returns a JSON object with sorted keys and without blanks, and
// "" for an empty one.
func canonicalJSON(object map[string]string) string {
	if len(object) == 0 {
		return ""
	}
	text, _ := json.Marshal(object) // a map of strings always encodes, sorted
	return string(text)
}

func (k grantCheck) vaultPath(path string, spec *CredentialSpec) {
	if !validVaultPath(spec.Vault.Path) {
		k.report(path+".path", "%q is not a path as vault read takes it, as in secret/data/weather", clip(spec.Vault.Path))
	}
	if jwt := spec.Inject.JWT; jwt != nil {
		k.signPath(path, spec.Vault, jwt.Algorithm)
	}
	if segments := strings.Split(spec.Vault.Path, "/"); len(spec.Vault.Params) > 0 && len(segments) > 2 && segments[1] == "data" {
		k.report(path+".params", "would be stored in the place of the secret %q; leave them out, so that it is read", clip(spec.Vault.Path))
	}
	if spec.Vault.Params[""] != "" {
		k.report(path+".params", "has a parameter without a name")
	}
}

// signPath checks the path of a transit engine, which is written to.
func (k grantCheck) signPath(path string, v VaultPath, algorithm string) {
	verb := "sign"
	if strings.HasPrefix(algorithm, "HS") {
		verb = "hmac"
	}
	if segments := strings.Split(v.Path, "/"); slices.Contains(algorithms(), algorithm) &&
		(len(segments) < 3 || segments[len(segments)-2] != verb) {
		k.report(path+".path", "%q does not sign by %s; write the key of a transit engine, as in transit/%s/KEY", clip(v.Path), clip(algorithm), verb)
	}
	if len(v.Params) > 0 {
		k.report(path+".params", "does not go with inject.jwt; write what is signed there")
	}
}

// validVaultPath reports whether s is a path that Vault reads: whatever prints,
// also blanks and letters beyond ASCII. What a URL, Vault or its clients would take
// for something else is not, nor are Vault's own paths.
func validVaultPath(s string) bool {
	for segment := range strings.SplitSeq(s, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
	}
	return utf8.ValidString(s) && strings.TrimSpace(s) == s && !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.IsPrint(r) || r == '?' || r == '#' || r == '\\'
	}) && !strings.HasPrefix(s, "sys/") && !strings.HasPrefix(s, "auth/") && !strings.HasPrefix(s, "cubbyhole/")
}

// inject checks how a credential reaches the upstream, and compiles it.
func (k grantCheck) inject(path string, in Inject, out *credentialSpec) {
	ways := []struct {
		name  string
		set   bool
		check func(path string)
	}{
		{"header", in.Header != "", nil},
		{"query", in.Query != "", nil},
		{"cookie", in.Cookie != "", nil},
		{"basic", in.Basic != nil, func(path string) { k.basic(path, in.Basic, out) }},
		{"mtls", in.MTLS != nil, func(path string) { k.mtls(path, in.MTLS, out) }},
		{"sigv4", in.SigV4 != nil, func(path string) { k.sigv4(path, in.SigV4, out) }},
		{"oauth2", in.OAuth2 != nil, func(path string) { k.oauth2(path, in.OAuth2, out) }},
		{"jwt", in.JWT != nil, func(path string) { k.jwt(path, in.JWT, out) }},
	}
	var names, set []string
	simple := in.Header+in.Query+in.Cookie != ""
	for _, way := range ways {
		names = append(names, way.name)
		if !way.set {
			continue
		}
		set = append(set, way.name)
		if way.check == nil {
			continue
		}
		way.check(path + "." + way.name)
		if in.Value != "" && !simple {
			k.report(path+".value", "does not go with %s", way.name)
		}
	}
	if simple {
		k.slot(path, slot{in.Header, in.Query, in.Cookie, in.Value}, out)
	}
	switch last := len(names) - 1; {
	case len(set) == 0:
		k.report(path, "says not how; write one of %s or %s", strings.Join(names[:last], ", "), names[last])
	case len(set) > 1:
		k.report(path, "says %s; write exactly one of them", strings.Join(set, " and "))
	}
}

// slot is the place in a request that carries a text.
type slot struct{ header, query, cookie, value string }

// slot checks a place, of which exactly one is named, and what goes there.
func (k grantCheck) slot(path string, s slot, out *credentialSpec) {
	for _, place := range []struct {
		field, name string
		kind        InjectionKind
	}{
		{"header", s.header, InjectHeader}, {"query", s.query, InjectQuery}, {"cookie", s.cookie, InjectCookie},
	} {
		if place.name == "" {
			continue
		}
		out.kind, out.name = place.kind, place.name
		if !isToken(place.name) {
			k.report(path+"."+place.field, "%q is not a name that a request can carry", clip(place.name))
		}
		if s.value == "" {
			k.report(path+".value", "is missing; write what goes into the %s, as in \"Bearer {api_key}\"", place.field)
		}
	}
	if s.header != "" {
		out.name = asciiLower(s.header)
		if isReservedHeader(out.name) {
			k.report(path+".header", "%s belongs to the connection or to Chaperone and carries no credential", clip(s.header))
		}
	}
	value, fixed := k.template(path+".value", s.value)
	if fixed && s.value != "" {
		k.report(path+".value", takesNothing, clip(s.value))
	}
	out.addPart(value)
}

// template parses what a credential is rendered with, and reports whether it
// is fixed and takes nothing from Vault.
func (k grantCheck) template(path, text string) (parsed template, fixed bool) {
	parsed, err := parseTemplate(text)
	if err != nil {
		k.report(path, "%v", err)
	}
	return parsed, err == nil && len(parsed.fields) == 0
}

const takesNothing = "%q takes nothing from Vault; name a field of its answer as in {api_key}"

// basic checks HTTP basic authentication. One of the two may be fixed: many an
// API wants a fixed user, or no password.
func (k grantCheck) basic(path string, in *Basic, out *credentialSpec) {
	out.kind, out.name, out.basic = InjectHeader, "authorization", true
	username, fixedUser := k.template(path+".username", in.Username)
	password, fixedPassword := k.template(path+".password", in.Password)
	if fixedUser && fixedPassword {
		k.report(path, takesNothing, clip(in.Username+":"+in.Password))
	}
	out.addPart(username)
	out.addPart(password)
}

// mtls checks a client certificate.
func (k grantCheck) mtls(path string, in *MTLS, out *credentialSpec) {
	out.kind = InjectCertificate
	for _, part := range []struct{ name, text, byDefault string }{
		{"certificate", in.Certificate, "{certificate}"},
		{"privateKey", in.PrivateKey, "{private_key}"},
		{"chain", in.Chain, "{ca_chain}"},
	} {
		text := part.text
		if text == "" {
			text = part.byDefault
		}
		parsed, err := parseTemplate(text)
		if err != nil || len(parsed.fields) != 1 || strings.Join(parsed.literals, "") != "" {
			k.report(path+"."+part.name, "%q is not one field of Vault's answer, as in %s", clip(text), part.byDefault)
		}
		parsed.optional = part.name == "chain" && part.text == ""
		out.addPart(parsed)
	}
}

// sigv4 checks an AWS signature.
func (k grantCheck) sigv4(path string, in *SigV4, out *credentialSpec) {
	out.kind, out.service, out.region = InjectSigV4, in.Service, in.Region
	for _, f := range []struct{ name, text, example string }{{"service", in.Service, "s3"}, {"region", in.Region, "eu-west-1"}} {
		if !isScopeName(f.text) {
			k.report(path+"."+f.name, "%q is not as AWS writes it; use lower-case letters, digits and dashes, as in %s", clip(f.text), f.example)
		}
	}
	id, _ := k.template(path+".accessKeyID", orDefault(in.AccessKeyID, "{access_key}"))
	secret, fixed := k.template(path+".secretAccessKey", orDefault(in.SecretAccessKey, "{secret_key}"))
	if fixed {
		k.report(path+".secretAccessKey", "%q takes nothing from Vault; name a field of its answer as in {secret_key}", clip(in.SecretAccessKey))
	}
	out.addPart(id)
	out.addPart(secret)
	if in.SessionToken != "" {
		session, _ := k.template(path+".sessionToken", in.SessionToken)
		out.addPart(session)
		return
	}
	for _, field := range []string{"security_token", "session_token"} {
		out.addPart(template{literals: []string{"", ""}, fields: []string{field}, optional: true})
	}
}

// isScopeName reports whether s can stand in the scope of a signature, which
// slashes divide.
func isScopeName(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func orDefault(text, byDefault string) string {
	if text == "" {
		return byDefault
	}
	return text
}

// oauth2 checks access tokens.
func (k grantCheck) oauth2(path string, in *OAuth2, out *credentialSpec) {
	t := &out.ref.Token
	*t = TokenSpec{
		Kind: TokenOAuth2, TokenURL: in.TokenURL, Scopes: strings.Join(in.Scopes, " "), Audience: in.Audience,
		Style: orDefault(in.Style, StyleHeader), CA: in.CA,
		ClientID: orDefault(in.ClientID, "{client_id}"), ClientSecret: orDefault(in.ClientSecret, "{client_secret}"),
		Extra: k.tokenParameters(path+".parameters", in.Parameters),
	}
	if !isTokenURL(in.TokenURL) {
		k.report(path+".tokenURL", "%q is not where tokens are got; write an https URL without a user or a fragment, as in https://id.example/oauth2/token", clip(redactURL(in.TokenURL)))
	}
	for i, scope := range in.Scopes {
		at := fmt.Sprintf("%s.scopes[%d]", path, i)
		switch {
		case !isScope(scope):
			k.report(at, "%q is not one scope; write each as an element of its own, without blanks or quotes", clip(scope))
		case slices.Contains(in.Scopes[:i], scope):
			k.report(at, "%q is given twice", clip(scope))
		}
	}
	k.claim(path+".audience", in.Audience)
	if t.Style != StyleHeader && t.Style != StyleBody {
		k.report(path+".style", "%q is not header or body", clip(in.Style))
	}
	if in.CAFile != "" && strings.TrimSpace(in.CA) == "" {
		k.report(path+".caFile", "%q holds no certificate; without one every authority of the system would be trusted", clip(in.CAFile))
	}
	k.template(path+".clientID", t.ClientID)
	if _, fixed := k.template(path+".clientSecret", t.ClientSecret); fixed {
		k.report(path+".clientSecret", "%q takes nothing from Vault; name a field of its answer as in {client_secret}", clip(in.ClientSecret))
	}
	k.tokenSlot(path, slot{in.Header, in.Query, in.Cookie, in.Value}, "access_token", out)
}

// tokenParameters checks further parameters of a request for a token and returns
// them encoded.
func (k grantCheck) tokenParameters(path string, in map[string]string) string {
	form := url.Values{}
	for _, name := range slices.Sorted(maps.Keys(in)) {
		switch name {
		case "":
			k.report(path, "has a parameter without a name")
		case "grant_type", "client_id", "client_secret", "client_assertion", "client_assertion_type":
			k.report(path+"."+name, "is Chaperone's to say; remove it")
		case "scope", "audience":
			k.report(path+"."+name, "has a field of its own; write it as scopes or audience")
		}
		k.claim(path+"."+name, in[name])
		form.Set(name, in[name])
	}
	return form.Encode()
}

// isTokenURL reports whether s is an absolute https URL that says where to send
// client credentials, and nothing else.
func isTokenURL(s string) bool {
	const longest = 2048
	u, err := url.Parse(s)
	if err != nil || len(s) > longest || u.Scheme != "https" || u.User != nil || strings.Contains(s, "#") {
		return false
	}
	d, err := NewDestination(SchemeHTTPS, u.Host, "")
	return err == nil && d.Host() != ""
}

// isScope reports whether s is a scope-token (RFC 6749, section 3.3).
func isScope(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return s != ""
}

// Bounds of a JWT's life. Clocks of two hosts differ by seconds.
const (
	shortestJWT = 30 * time.Second
	longestJWT  = 24 * time.Hour
	defaultJWT  = 5 * time.Minute

	longestBackdate = 5 * time.Minute
)

// algorithms returns the ways to sign, as JSON Web Signatures name them (RFC
// 7518, section 3.1; RFC 8037).
func algorithms() []string {
	return []string{
		"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512",
	}
}

// jwt checks JSON Web Tokens.
func (k grantCheck) jwt(path string, in *JWT, out *credentialSpec) {
	out.ref.Token = TokenSpec{
		Kind: TokenJWT, Algorithm: in.Algorithm, KeyID: in.KeyID, Issuer: in.Issuer, Subject: in.Subject, Audience: in.Audience,
		Lifetime: k.jwtLifetime(path+".lifetime", time.Duration(in.Lifetime), out.ref.Lifetime), Claims: canonicalJSON(in.Claims),
		KeyVersion: in.KeyVersion, Backdate: time.Duration(in.Backdate),
	}
	switch {
	case in.KeyVersion < 0:
		k.report(path+".keyVersion", "%d is no version of a key; they count from 1", in.KeyVersion)
	case in.KeyVersion > 0 && strings.Contains(in.KeyID, "{version}"):
		k.report(path+".keyVersion", "is fixed, and {version} in keyID follows the key; write one of them")
	}
	if d := time.Duration(in.Backdate); d < 0 || d > longestBackdate {
		k.report(path+".backdate", "%s is not from 0s to %s", in.Backdate, Duration(longestBackdate))
	}
	if known := algorithms(); !slices.Contains(known, in.Algorithm) {
		k.report(path+".algorithm", "%q is not a way to sign that is known; use one of %s", clip(in.Algorithm), strings.Join(known, ", "))
	}
	k.claim(path+".keyID", in.KeyID)
	k.claim(path+".issuer", in.Issuer)
	k.claim(path+".subject", in.Subject)
	k.claim(path+".audience", in.Audience)
	for _, name := range slices.Sorted(maps.Keys(in.Claims)) {
		at := path + ".claims." + name
		switch name {
		case "":
			k.report(path+".claims", "has a claim without a name")
		case "iss", "sub", "aud":
			k.report(at, "has a field of its own; write it as issuer, subject or audience")
		case "iat", "exp", "nbf", "jti":
			k.report(at, "is Chaperone's to say, anew for each token; remove it")
		}
	}
	k.tokenSlot(path, slot{in.Header, in.Query, in.Cookie, in.Value}, "jwt", out)
}

// jwtLifetime returns the lifetime of a token. One that is stated is held
// against the ceiling, and the default gives way to it.
func (k grantCheck) jwtLifetime(path string, stated, ceiling time.Duration) time.Duration {
	switch {
	case stated == 0 && ceiling > 0:
		return min(defaultJWT, ceiling)
	case stated == 0:
		return defaultJWT
	case stated < shortestJWT || stated > longestJWT:
		k.report(path, "%s is not from %s to %s", Duration(stated), Duration(shortestJWT), Duration(longestJWT))
	case ceiling > 0 && stated > ceiling:
		for _, guardrail := range k.guardrails {
			if life := time.Duration(guardrail.Ceilings.CredentialLifetime); life > 0 && stated > life {
				k.report(path, "%s is more than the %s that guardrail %s%s allows",
					Duration(stated), Duration(life), guardrail.Name, originSuffix(guardrail.Origin, "spec.ceilings.credentialLifetime"))
			}
		}
	}
	return stated
}

// claim checks a text that is sent as it is written.
func (k grantCheck) claim(path, text string) {
	const longest = 1024
	if noControls(text) != nil || len(text) > longest {
		k.report(path, "holds a control byte, or is longer than %d bytes", longest)
	}
}

// tokenSlot checks the place of a token: the header Authorization, unless
// another is named.
func (k grantCheck) tokenSlot(path string, s slot, field string, out *credentialSpec) {
	var named []string
	for _, place := range [...]struct{ field, name string }{{"header", s.header}, {"query", s.query}, {"cookie", s.cookie}} {
		if place.name != "" {
			named = append(named, place.field)
		}
	}
	if len(named) > 1 {
		k.report(path, "names %s; a token goes to one place", strings.Join(named, " and "))
	}
	if len(named) == 0 {
		s.header = "Authorization"
	}
	if s.value == "" && s.header != "" {
		s.value = "Bearer {" + field + "}"
	} else if s.value == "" {
		s.value = "{" + field + "}"
	}
	k.slot(path, s, out)
	for _, name := range out.fields {
		if name != field {
			k.report(path+".value", "names {%s}, and there is only {%s}", name, field)
		}
	}
}

// isReservedHeader reports whether a header steers the connection and so never
// carries a credential.
func isReservedHeader(name string) bool {
	switch name {
	case "host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive",
		"proxy-connection", "proxy-authorization", "proxy-authenticate", "expect", "content-type", "content-encoding", "date",
		"forwarded", "x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url":
		return true
	}
	return strings.HasPrefix(name, "x-chaperone-") || strings.HasPrefix(name, "x-forwarded-")
}

// placeholder checks a credential's stand-in. The variables of one plugin are
// one environment, so that two grants may not name the same.
func (k grantCheck) placeholder(i int, out *credentialSpec) {
	spec := k.g.Credentials[i].Placeholder
	if spec == nil {
		return
	}
	path := fmt.Sprintf("spec.credentials[%d].placeholder", i)
	p := &Placeholder{Grant: k.g.Name, Credential: out.ref.Name, Env: spec.Env, Like: spec.Like}
	if _, _, _, err := p.Parts(); err != nil {
		k.report(path+".like", "%q %v", clip(spec.Like), err)
	}
	switch {
	case !isEnvName(spec.Env):
		k.report(path+".env", "%q is not the name of an environment variable; use letters, digits and underscores", clip(spec.Env))
	case isReservedEnv(spec.Env):
		k.report(path+".env", "%s decides how the plugin runs or reaches the network; use another variable", spec.Env)
	}
	for _, other := range k.c.pluginPolicy(k.g.Plugin).credentials {
		if other.placeholder != nil && other.placeholder.Env == spec.Env {
			k.report(path+".env", "%s already holds the stand-in of credential %s of grant %s", spec.Env, other.ref.Name, other.ref.Grant)
		}
	}
	if out.kind == InjectCertificate {
		k.report(path, "does not go with mtls, which has no place in a request")
	}
	out.placeholder = p
}

func isEnvName(s string) bool {
	const longest = 128
	for i := range len(s) {
		if c := s[i]; !isAlpha(c) && c != '_' && (i == 0 || !isDigit(c)) {
			return false
		}
	}
	return s != "" && len(s) <= longest
}

// isReservedEnv reports whether a variable is Chaperone's own, or would
// change which programs and libraries run or where connections go. Names of
// proxies and authorities are what Chaperone sets itself.
func isReservedEnv(name string) bool {
	upper := strings.ToUpper(name)
	for _, prefix := range []string{"CHAPERONE_", "VAULT_", "LD_", "DYLD_", "GLIBC_", "MALLOC_", "BASH_FUNC_"} {
		if strings.HasPrefix(upper, prefix) {
			return true
		}
	}
	switch upper {
	case "PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "TMPDIR", "IFS", "ENV", "BASH_ENV", "TERM", "TZ", "LANG", "HOSTNAME",
		"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "FTP_PROXY", "NODE_USE_ENV_PROXY", "NODE_OPTIONS", "NODE_EXTRA_CA_CERTS",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "DENO_CERT",
		"JAVA_TOOL_OPTIONS", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PERL5LIB", "PERL5OPT", "RUBYOPT", "RUBYLIB", "GODEBUG",
		"RES_OPTIONS", "LOCALDOMAIN", "HOSTALIASES":
		return true
	}
	return false
}

// conditionsOfCredentials are those of every kind of credential.
const conditionsOfCredentials = ConditionCredential | ConditionCertificate | ConditionSignature

// conditions returns the conditions of the credential's kind.
func (c *credentialSpec) conditions() Conditions {
	switch {
	case c == nil:
	case c.kind == InjectCertificate:
		return ConditionCertificate
	case c.kind == InjectSigV4:
		return ConditionSignature
	}
	return 0
}
