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

// credential checks and compiles one credential of the grant. names are the names
// of earlier credentials.
func (k grantCheck) credential(i int, names map[string]bool) *credentialSpec {
	spec := &k.g.Credentials[i]
	path := fmt.Sprintf("spec.credentials[%d]", i)
	checkName(spec.Name, path+".name", "credential", names, k.report)
	out := &credentialSpec{ref: CredentialRef{
		Plugin: k.g.Plugin, Grant: k.g.Name, Name: spec.Name,
		Path: spec.Vault.Path, TrimNewline: spec.Vault.TrimNewline, Parameters: canonicalJSON(spec.Vault.Params),
	}}
	k.vaultPath(path+".vault", spec)
	ceiling := k.lifetime(spec.Name, nil)
	out.ref.Lifetime = k.lifetime(spec.Name, &out.exemptions)
	k.inject(path+".inject", spec.Inject, out)
	if token := out.ref.Token.Lifetime; token > 0 && token <= ceiling { // a token that needs no exemption
		out.ref.Lifetime, out.exemptions = ceiling, nil
	}
	k.notSecret(path+".vault.notSecret", spec, out)
	k.placeholder(i, out)
	return out
}

// lifetime returns the longest life of a credential: the shortest ceiling, 0 without one. If
// needed is set, exemptions relax each ceiling, and those that do are added. A credential
// has one lease for all of its rules, so that an exemption has to be for each of them.
func (k grantCheck) lifetime(credential string, needed *[]*Exemption) (shortest time.Duration) {
	for _, guardrail := range k.guardrails {
		ceiling := guardrail.Ceilings
		for i := range k.c.in.Exemptions {
			e := &k.c.in.Exemptions[i]
			relaxed, ok := e.relax(ceiling)
			if needed == nil || ceiling.CredentialLifetime <= 0 || !ok || relaxed.CredentialLifetime <= ceiling.CredentialLifetime || !k.covers(e, credential) {
				continue
			}
			ceiling = relaxed
			*needed = append(*needed, e)
		}
		if life := time.Duration(ceiling.CredentialLifetime); life > 0 && (shortest == 0 || life < shortest) {
			shortest = life
		}
	}
	return shortest
}

// covers reports whether an exemption is for each rule of the grant that uses a credential.
func (k grantCheck) covers(e *Exemption, credential string) bool {
	return e.Grant == k.g.Name && !slices.ContainsFunc(k.g.Rules, func(r Rule) bool {
		return r.Credential == credential && e.Rule != "" && e.Rule != r.ID
	})
}

// notSecret checks the fields that are declared not secret. A template may contain
// them beside at least one secret field.
func (k grantCheck) notSecret(path string, spec *CredentialSpec, out *credentialSpec) {
	out.notSecret = spec.Vault.NotSecret
	if len(out.notSecret) == 0 {
		return
	}
	if in := spec.Inject; in.Header+in.Query+in.Cookie == "" && in.Basic == nil && in.Database == nil {
		k.report(path, "applies to header, query, cookie, basic and database only; remove it")
		return
	}
	for i, field := range out.notSecret {
		if !slices.Contains(out.fields, field) {
			k.report(fmt.Sprintf("%s[%d]", path, i), "%q is not a field that inject uses; name one of %s", clip(field), clip(strings.Join(out.fields, ", ")))
		}
	}
	if !slices.ContainsFunc(out.fields, func(field string) bool { return !slices.Contains(out.notSecret, field) }) {
		k.report(path, "names every field that inject uses; leave out those that are secret")
	}
}

// canonicalJSON returns a JSON object with sorted keys and without spaces, "" for
// an empty one.
func canonicalJSON(object map[string]string) string {
	if len(object) == 0 {
		return ""
	}
	text, _ := json.Marshal(object) // a map of strings always encodes, sorted
	return string(text)
}

func (k grantCheck) vaultPath(path string, spec *CredentialSpec) {
	if !validVaultPath(spec.Vault.Path) {
		k.report(path+".path", "%q is not a path for vault read; write one as in secret/data/weather", clip(spec.Vault.Path))
	}
	if jwt := spec.Inject.JWT; jwt != nil {
		k.signPath(path, spec.Vault, jwt.Algorithm)
	}
	if segments := strings.Split(spec.Vault.Path, "/"); len(spec.Vault.Params) > 0 && len(segments) > 2 && segments[1] == "data" {
		k.report(path+".params", "would overwrite the secret %q; remove them, so that it is read", clip(spec.Vault.Path))
	}
	if spec.Vault.Params[""] != "" {
		k.report(path+".params", "has a parameter without a name; name it")
	}
}

// signPath checks the path of a transit engine, to which vault writes.
func (k grantCheck) signPath(path string, v VaultPath, algorithm string) {
	verb := "sign"
	if strings.HasPrefix(algorithm, "HS") {
		verb = "hmac"
	}
	if segments := strings.Split(v.Path, "/"); slices.Contains(algorithms(), algorithm) &&
		(len(segments) < 3 || segments[len(segments)-2] != verb) {
		k.report(path+".path", "%q does not sign with %s; write the key of a transit engine, as in transit/%s/KEY", clip(v.Path), clip(algorithm), verb)
	}
	if len(v.Params) > 0 {
		k.report(path+".params", "does not apply to inject.jwt; write the claims there")
	}
}

// validVaultPath reports whether s is a path that Vault can read: printable text,
// including spaces and letters beyond ASCII. It excludes text that a URL, Vault or
// its clients would interpret, and Vault's own paths.
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
		{"database", in.Database != nil, func(path string) { k.databaseLogin(path, in.Database, out) }},
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
			k.report(path+".value", "does not apply to %s; remove it", way.name)
		}
	}
	if simple {
		k.slot(path, slot{in.Header, in.Query, in.Cookie, in.Value}, out)
	}
	switch last := len(names) - 1; {
	case len(set) == 0:
		k.report(path, "is missing; set one of %s or %s", strings.Join(names[:last], ", "), names[last])
	case len(set) > 1:
		k.report(path, "sets %s; set exactly one of them", strings.Join(set, " and "))
	}
}

// slot is a place in a request that carries a text, and its template.
type slot struct{ header, query, cookie, value string }

// slot checks a place, of which exactly one is named, and its template.
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
			k.report(path+"."+place.field, "%q is not a valid name in a request; write a token, as in X-Api-Key", clip(place.name))
		}
		if s.value == "" {
			k.report(path+".value", "is missing; write the template of the %s, as in \"Bearer {api_key}\"", place.field)
		}
	}
	if s.header != "" {
		out.name = asciiLower(s.header)
		if isReservedHeader(out.name) {
			k.report(path+".header", "%s is reserved for the connection or Chaperone; use another header", clip(s.header))
		}
	}
	value, fixed := k.template(path+".value", s.value)
	if fixed && s.value != "" {
		k.report(path+".value", takesNothing, clip(s.value))
	}
	out.addPart(value)
}

// template parses a template of a credential, and reports whether it is fixed and
// uses no field of Vault's answer.
func (k grantCheck) template(path, text string) (parsed template, fixed bool) {
	parsed, err := parseTemplate(text)
	if err != nil {
		k.report(path, "%v", err)
	}
	return parsed, err == nil && len(parsed.fields) == 0
}

const takesNothing = "%q uses no field of Vault's answer; name one, as in {api_key}"

// basic checks HTTP basic authentication. Username or password may be fixed: many
// APIs expect a fixed user, or no password.
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

// databaseLogin checks the login of a database's session. The username may be fixed; a
// server of Redis may have no user but default.
func (k grantCheck) databaseLogin(path string, in *DatabaseLogin, out *credentialSpec) {
	out.kind = InjectDatabase
	username, _ := k.template(path+".username", orDefault(in.Username, "{username}"))
	password, fixed := k.template(path+".password", orDefault(in.Password, "{password}"))
	if fixed {
		k.report(path+".password", "%q uses no field of Vault's answer; name one, as in {password}", clip(in.Password))
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
			k.report(path+"."+part.name, "%q is not one field of Vault's answer; write one, as in %s", clip(text), part.byDefault)
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
			k.report(path+"."+f.name, "%q is not a name of AWS; use lower-case letters, digits and dashes, as in %s", clip(f.text), f.example)
		}
	}
	id, _ := k.template(path+".accessKeyID", orDefault(in.AccessKeyID, "{access_key}"))
	secret, fixed := k.template(path+".secretAccessKey", orDefault(in.SecretAccessKey, "{secret_key}"))
	if fixed {
		k.report(path+".secretAccessKey", "%q uses no field of Vault's answer; name one, as in {secret_key}", clip(in.SecretAccessKey))
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

// isScopeName reports whether s is valid in the scope of a signature, which is
// separated by slashes.
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
		k.report(path+".tokenURL", "%q is not the URL of a token endpoint; write an https URL without user and fragment, as in https://id.example/oauth2/token", clip(redactURL(in.TokenURL)))
	}
	for i, scope := range in.Scopes {
		at := fmt.Sprintf("%s.scopes[%d]", path, i)
		switch {
		case !isScope(scope):
			k.report(at, "%q is not one scope; write each as its own element, without spaces or quotes", clip(scope))
		case slices.Contains(in.Scopes[:i], scope):
			k.report(at, "%q is given twice; write it once", clip(scope))
		}
	}
	k.claim(path+".audience", in.Audience)
	if t.Style != StyleHeader && t.Style != StyleBody {
		k.report(path+".style", "%q is not header or body; write one of them", clip(in.Style))
	}
	if in.CAFile != "" && strings.TrimSpace(in.CA) == "" {
		k.report(path+".caFile", "%q holds no certificate; without one every authority of the system would be trusted", clip(in.CAFile))
	}
	k.template(path+".clientID", t.ClientID)
	if _, fixed := k.template(path+".clientSecret", t.ClientSecret); fixed {
		k.report(path+".clientSecret", "%q uses no field of Vault's answer; name one, as in {client_secret}", clip(in.ClientSecret))
	}
	k.tokenSlot(path, slot{in.Header, in.Query, in.Cookie, in.Value}, "access_token", out)
}

// tokenParameters checks further parameters of a token request and returns them
// encoded.
func (k grantCheck) tokenParameters(path string, in map[string]string) string {
	form := url.Values{}
	for _, name := range slices.Sorted(maps.Keys(in)) {
		switch name {
		case "":
			k.report(path, "has a parameter without a name; name it")
		case "grant_type", "client_id", "client_secret", "client_assertion", "client_assertion_type":
			k.report(path+"."+name, "is set by Chaperone; remove it")
		case "scope", "audience":
			k.report(path+"."+name, "has its own field; write it as scopes or audience")
		}
		k.claim(path+"."+name, in[name])
		form.Set(name, in[name])
	}
	return form.Encode()
}

// isTokenURL reports whether s is an absolute https URL of a token endpoint, without
// user and fragment.
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

// Bounds of a JWT's lifetime. Clocks of two hosts differ by seconds.
const (
	shortestJWT = 30 * time.Second
	longestJWT  = 24 * time.Hour
	defaultJWT  = 5 * time.Minute

	longestBackdate = 5 * time.Minute
)

// algorithms returns the signature algorithms, as JSON Web Signatures name them
// (RFC 7518, section 3.1; RFC 8037).
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
		k.report(path+".keyVersion", "%d is not a version of a key; write a number from 1", in.KeyVersion)
	case in.KeyVersion > 0 && strings.Contains(in.KeyID, "{version}"):
		k.report(path+".keyVersion", "is fixed, but {version} in keyID follows the key; write one of them")
	}
	if d := time.Duration(in.Backdate); d < 0 || d > longestBackdate {
		k.report(path+".backdate", "%s is out of range; write 0s to %s", in.Backdate, Duration(longestBackdate))
	}
	if known := algorithms(); !slices.Contains(known, in.Algorithm) {
		k.report(path+".algorithm", "%q is not a known algorithm; use one of %s", clip(in.Algorithm), strings.Join(known, ", "))
	}
	k.claim(path+".keyID", in.KeyID)
	k.claim(path+".issuer", in.Issuer)
	k.claim(path+".subject", in.Subject)
	k.claim(path+".audience", in.Audience)
	for _, name := range slices.Sorted(maps.Keys(in.Claims)) {
		at := path + ".claims." + name
		switch name {
		case "":
			k.report(path+".claims", "has a claim without a name; name it")
		case "iss", "sub", "aud":
			k.report(at, "has its own field; write it as issuer, subject or audience")
		case "iat", "exp", "nbf", "jti":
			k.report(at, "is set by Chaperone for each token; remove it")
		}
	}
	k.tokenSlot(path, slot{in.Header, in.Query, in.Cookie, in.Value}, "jwt", out)
}

// jwtLifetime returns the lifetime of a token. A stated lifetime is checked
// against the ceiling, and the ceiling bounds the default.
func (k grantCheck) jwtLifetime(path string, stated, ceiling time.Duration) time.Duration {
	switch {
	case stated == 0 && ceiling > 0:
		return min(defaultJWT, ceiling)
	case stated == 0:
		return defaultJWT
	case stated < shortestJWT || stated > longestJWT:
		k.report(path, "%s is out of range; write %s to %s", Duration(stated), Duration(shortestJWT), Duration(longestJWT))
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

// claim checks a text that is sent unchanged.
func (k grantCheck) claim(path, text string) {
	const longest = 1024
	if noControls(text) != nil || len(text) > longest {
		k.report(path, "holds a control byte, or is longer than %d bytes; shorten it to printable text", longest)
	}
}

// tokenSlot checks the slot of a token: the header Authorization, unless another
// slot is named.
func (k grantCheck) tokenSlot(path string, s slot, field string, out *credentialSpec) {
	var named []string
	for _, place := range [...]struct{ field, name string }{{"header", s.header}, {"query", s.query}, {"cookie", s.cookie}} {
		if place.name != "" {
			named = append(named, place.field)
		}
	}
	if len(named) > 1 {
		k.report(path, "names %s; write one slot for the token", strings.Join(named, " and "))
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
			k.report(path+".value", "names {%s}, which does not exist; write {%s}", name, field)
		}
	}
}

// isReservedHeader reports whether a header controls the connection or is
// Chaperone's own, so that it never carries a credential.
func isReservedHeader(name string) bool {
	switch name {
	case "host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "keep-alive",
		"proxy-connection", "proxy-authorization", "proxy-authenticate", "expect", "content-type", "content-encoding", "date",
		"forwarded", "x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url":
		return true
	}
	return strings.HasPrefix(name, "x-chaperone-") || strings.HasPrefix(name, "x-forwarded-")
}

// placeholder checks a credential's placeholder. The variables of one plugin form
// one environment, so two grants must not name the same variable.
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
	case !IsEnvName(spec.Env):
		k.report(path+".env", "%q is not the name of an environment variable; use letters, digits and underscores", clip(spec.Env))
	case isReservedEnv(spec.Env):
		k.report(path+".env", "%s controls how the plugin runs or reaches the network; use another variable", spec.Env)
	}
	for _, other := range k.c.pluginPolicy(k.g.Plugin).credentials {
		if other.placeholder != nil && other.placeholder.Env == spec.Env {
			k.report(path+".env", "%s is already set to the placeholder of credential %s of grant %s; use another variable", spec.Env, other.ref.Name, other.ref.Grant)
		}
	}
	if out.kind == InjectCertificate {
		k.report(path, "does not apply to mtls, which has no slot in a request; remove it")
	}
	out.placeholder = p
}

// IsEnvName reports whether s can name an environment variable: letters, digits and
// underscores, at most 128, of which the first is no digit.
func IsEnvName(s string) bool {
	const longest = 128
	for i := range len(s) {
		if c := s[i]; !isAlpha(c) && c != '_' && (i == 0 || !isDigit(c)) {
			return false
		}
	}
	return s != "" && len(s) <= longest
}

// isReservedEnv reports whether a variable is Chaperone's own, or would change
// which programs and libraries run or where connections go. Chaperone itself sets
// the variables of proxies and certificate authorities.
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
		"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE", "DENO_CERT", "PGSSLROOTCERT",
		"JAVA_TOOL_OPTIONS", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PERL5LIB", "PERL5OPT", "RUBYOPT", "RUBYLIB", "GODEBUG",
		"RES_OPTIONS", "LOCALDOMAIN", "HOSTALIASES":
		return true
	}
	return false
}

// conditionsOfCredentials are the conditions of all kinds of credentials.
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
