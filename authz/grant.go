package authz

import (
	"net/netip"
	"time"
)

// Scheme is the protocol of a destination.
type Scheme string

// The schemes that rules may name. SchemeTLS is passthrough by SNI.
const (
	SchemeHTTPS Scheme = "https"
	SchemeHTTP  Scheme = "http"
	SchemeTLS   Scheme = "tls"
	SchemeTCP   Scheme = "tcp"
)

// HTTP reports whether requests of the scheme have methods and paths.
func (s Scheme) HTTP() bool { return s == SchemeHTTPS || s == SchemeHTTP }

// shared returns the scheme as the constants have it, so that comparing schemes
// compares pointers.
func (s Scheme) shared() Scheme {
	for _, known := range [...]Scheme{SchemeHTTPS, SchemeHTTP, SchemeTLS, SchemeTCP} {
		if s == known {
			return known
		}
	}
	return s
}

// DefaultPort returns the scheme's port, and 0 for tcp, which has none.
func (s Scheme) DefaultPort() uint16 {
	switch s {
	case SchemeHTTPS, SchemeTLS:
		return 443
	case SchemeHTTP:
		return 80
	case SchemeTCP:
	}
	return 0
}

// Mode says whether what is not granted is refused or only noted.
type Mode string

// The modes. The zero Mode is ModeEnforce.
const (
	ModeEnforce Mode = "enforce"
	ModeObserve Mode = "observe"
)

// Origin says where a document was read, for error messages. It is opaque to
// this package.
type Origin string

// Grant is what was approved for one plugin: the spec of a PluginGrant as it
// is written, before it is compiled into a [Policy].
type Grant struct {
	Name   string `json:"-"` // metadata.name
	Origin Origin `json:"-"`

	// Plugin is the principal the grant is for.
	Plugin string `json:"plugin"`
	// NotAfter is when the grant ends. Nothing is granted for ever.
	NotAfter time.Time `json:"notAfter"`
	// Rules are what is granted; at least one.
	Rules []Rule `json:"rules"`
	// Credentials are what rules may inject.
	Credentials []CredentialSpec `json:"credentials,omitempty"`
	// Limits hold for the whole plugin. The limits of all its grants apply.
	Limits Limits `json:"limits,omitzero"`
	// Sockets are the Unix sockets the plugin may reach: absolute paths, or @NAME for an abstract one.
	Sockets []string `json:"sockets,omitempty"`
}

// Rule is one least-privilege permission of a grant.
type Rule struct {
	// ID is unique in the grant. Elsewhere the rule is named GRANT/ID.
	ID string `json:"id"`
	// Reason says why the plugin needs it, to reviewers.
	Reason string `json:"reason"`
	// To is where the plugin may go.
	To To `json:"to"`
	// Methods are the HTTP methods; "*" alone is any. Required for http(s) and refused for tls and tcp.
	Methods []string `json:"methods,omitempty"`
	// Paths are patterns: * is one segment that is not empty, ** stands last and is the rest. Required for http(s) and refused for tls and tcp.
	Paths []string `json:"paths,omitempty"`
	// Upgrades are the protocols a request may upgrade to, as in websocket or spdy/3.1.
	Upgrades []string `json:"upgrades,omitempty"`
	// EncodedSlash is refuse (the default) or allow, for APIs whose ids contain %2F.
	EncodedSlash string `json:"encodedSlash,omitempty"`
	// Credential names one of the grant's credentials.
	Credential string `json:"credential,omitempty"`
	// WildcardCredential allows the credential although a host is a wildcard.
	WildcardCredential bool `json:"wildcardCredential,omitempty"`
	// Insecure allows the credential over plain http.
	Insecure bool `json:"insecure,omitempty"`
	// Limits hold for this rule alone.
	Limits Limits `json:"limits,omitzero"`
	// Timeout is of the whole exchange; none by default.
	Timeout Duration `json:"timeout,omitempty"`
	// NotAfter is when the rule ends, not later than the grant.
	NotAfter time.Time `json:"notAfter,omitzero"`
	// Mode is enforce (the default) or observe.
	Mode Mode `json:"mode,omitempty"`
	// ObserveUntil ends the mode observe, and is required by it.
	ObserveUntil time.Time `json:"observeUntil,omitzero"`
}

// To is the destination of a rule.
type To struct {
	// Scheme is https (the default), http, tls or tcp.
	Scheme Scheme `json:"scheme,omitempty"`
	// Hosts are exact names, *.NAME (one label), **.NAME (one or more) or IP literals.
	Hosts []string `json:"hosts"`
	// Ports default to the scheme's; tcp has no default.
	Ports []uint16 `json:"ports,omitempty"`
	// Addresses are where a name may resolve to; by default public unicast only.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// TLS are the terms of the connection to the upstream.
	TLS TLS `json:"tls,omitzero"`
}

// TLS are a rule's terms for the connection to the upstream.
type TLS struct {
	// Min is the lowest version, "1.2" (the default) or "1.3".
	Min string `json:"min,omitempty"`
	// CAFile is a PEM file, relative to the grant's, that replaces the system's authorities.
	CAFile string `json:"caFile,omitempty"`
	// Originate takes plain http from the plugin as this https rule.
	Originate bool `json:"originate,omitempty"`

	// CA is the content of CAFile, read by whoever loads the grant.
	CA string `json:"-"`
}

// CredentialSpec is one credential of a grant: where it comes from and how it
// is injected.
type CredentialSpec struct {
	// Name is what rules call it.
	Name string `json:"name"`
	// Vault is where it comes from.
	Vault VaultPath `json:"vault"`
	// Inject is how it reaches the upstream: one of header, query, cookie, basic, mtls, sigv4, oauth2 and jwt.
	Inject Inject `json:"inject"`
	// Placeholder is a stand-in for it in the plugin's environment, so that client libraries start; none by default.
	Placeholder *PlaceholderSpec `json:"placeholder,omitempty"`
}

// VaultPath is a path of Vault's that is asked for a credential.
type VaultPath struct {
	// Path is as vault read takes it, as in secret/data/weather or database/creds/reporting; for inject.jwt it is MOUNT/sign/KEY.
	Path string `json:"path"`
	// Params are sent to a path that answers to parameters, as in pki/issue/ROLE; without them it is read.
	Params map[string]string `json:"params,omitempty"`
	// TrimNewline takes one line break off the end of each field; a field that ends with one is not used otherwise.
	TrimNewline bool `json:"trimNewline,omitempty"`
	// NotSecret are fields of a template that are no secrets, as an account's name and a region are: they are not searched for in answers by themselves.
	NotSecret []string `json:"notSecret,omitempty"`
}

// PlaceholderSpec is a stand-in for a credential in the plugin's environment.
// Chaperone replaces it in the credential's place and refuses it anywhere else.
type PlaceholderSpec struct {
	// Env is the variable that holds it.
	Env string `json:"env"`
	// Like is its shape, as in sk_live_{24}: {N} stands for N random letters and digits, 8 to 256 of them.
	Like string `json:"like"`
}

// Inject says where in a request a credential goes. {field} in a template is
// replaced by that field of Vault's answer.
type Inject struct {
	// Header names a header; Value is its template.
	Header string `json:"header,omitempty"`
	// Query names a query parameter; Value is its template.
	Query string `json:"query,omitempty"`
	// Cookie names a cookie; Value is its template.
	Cookie string `json:"cookie,omitempty"`
	// Value is the template for Header, Query or Cookie.
	Value string `json:"value,omitempty"`
	// Basic is HTTP basic authentication (RFC 7617).
	Basic *Basic `json:"basic,omitempty"`
	// MTLS is a client certificate, shown to the upstream.
	MTLS *MTLS `json:"mtls,omitempty"`
	// SigV4 signs requests to AWS anew.
	SigV4 *SigV4 `json:"sigv4,omitempty"`
	// OAuth2 is an access token, got with client credentials (RFC 6749, section 4.4).
	OAuth2 *OAuth2 `json:"oauth2,omitempty"`
	// JWT is a JSON Web Token that Vault's transit engine signs for this use.
	JWT *JWT `json:"jwt,omitempty"`
}

// Describe says on one line how the credential reaches the upstream, as in header
// Authorization or sigv4 for s3 in eu-west-1.
func (i Inject) Describe() string {
	switch {
	case i.Basic != nil:
		return "basic"
	case i.MTLS != nil:
		return "mtls"
	case i.SigV4 != nil:
		return "sigv4 for " + i.SigV4.Service + " in " + i.SigV4.Region
	case i.OAuth2 != nil:
		return "oauth2 token in " + describeSlot(i.OAuth2.Header, i.OAuth2.Query, i.OAuth2.Cookie)
	case i.JWT != nil:
		return "jwt in " + describeSlot(i.JWT.Header, i.JWT.Query, i.JWT.Cookie)
	}
	return describeSlot(i.Header, i.Query, i.Cookie)
}

func describeSlot(header, query, cookie string) string {
	switch {
	case query != "":
		return "query parameter " + query
	case cookie != "":
		return "cookie " + cookie
	case header != "":
		return "header " + header
	}
	return "header Authorization"
}

// Basic holds the two templates of HTTP basic authentication.
type Basic struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// MTLS names the fields of Vault's answer that are a client certificate. The
// defaults are those of a PKI engine's answer.
type MTLS struct {
	// Certificate is {certificate} by default.
	Certificate string `json:"certificate,omitempty"`
	// PrivateKey is {private_key} by default.
	PrivateKey string `json:"privateKey,omitempty"`
	// Chain is {ca_chain} by default, if the answer has it.
	Chain string `json:"chain,omitempty"`
}

// SigV4 signs requests by AWS Signature Version 4. The defaults of its
// templates are the fields of an AWS engine's answer.
type SigV4 struct {
	// Service is as AWS names it, as in s3.
	Service string `json:"service"`
	// Region is as AWS names it, as in eu-west-1.
	Region string `json:"region"`
	// AccessKeyID is {access_key} by default.
	AccessKeyID string `json:"accessKeyID,omitempty"`
	// SecretAccessKey is {secret_key} by default.
	SecretAccessKey string `json:"secretAccessKey,omitempty"`
	// SessionToken is {security_token} or {session_token} by default, if the answer has one.
	SessionToken string `json:"sessionToken,omitempty"`
}

// OAuth2 gets access tokens with client credentials. Of Header, Query and
// Cookie at most one is set.
type OAuth2 struct {
	// TokenURL is where tokens are got, as in https://id.example/oauth2/token.
	TokenURL string `json:"tokenURL"`
	// Scopes are asked for.
	Scopes []string `json:"scopes,omitempty"`
	// Audience is asked for, where the authorization server knows the parameter.
	Audience string `json:"audience,omitempty"`
	// Parameters are further ones of the request for a token, as in resource: https://api.example (RFC 8707).
	Parameters map[string]string `json:"parameters,omitempty"`
	// ClientID is {client_id} by default.
	ClientID string `json:"clientID,omitempty"`
	// ClientSecret is {client_secret} by default.
	ClientSecret string `json:"clientSecret,omitempty"`
	// Style is where the client's credentials go: header (the default: HTTP basic authentication) or body.
	Style string `json:"style,omitempty"`
	// CAFile is a PEM file, relative to the grant's, that replaces the system's authorities for TokenURL.
	CAFile string `json:"caFile,omitempty"`
	// Header is the header that carries the token, Authorization by default.
	Header string `json:"header,omitempty"`
	// Query is the query parameter that carries it.
	Query string `json:"query,omitempty"`
	// Cookie is the cookie that carries it.
	Cookie string `json:"cookie,omitempty"`
	// Value is the template of what carries it: Bearer {access_token} by default, {access_token} in a query parameter or cookie.
	Value string `json:"value,omitempty"`

	// CA is the content of CAFile, read by whoever loads the grant.
	CA string `json:"-"`
}

// JWT has Vault's transit engine sign JSON Web Tokens. Of Header, Query and
// Cookie at most one is set.
type JWT struct {
	// Algorithm is RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA, HS256, HS384 or HS512, as the key in Vault can.
	Algorithm string `json:"algorithm"`
	// KeyID is the header kid; none by default. {version} in it is the version of the key that signs, which a rotation of the key changes.
	KeyID string `json:"keyID,omitempty"`
	// KeyVersion is the version of the key that signs: the latest by default or, where keyID is without {version}, the one that signed first.
	KeyVersion int `json:"keyVersion,omitempty"`
	// Issuer is the claim iss; none by default.
	Issuer string `json:"issuer,omitempty"`
	// Subject is the claim sub; none by default.
	Subject string `json:"subject,omitempty"`
	// Audience is the claim aud; none by default.
	Audience string `json:"audience,omitempty"`
	// Lifetime is from 30s to 24h; 5m by default.
	Lifetime Duration `json:"lifetime,omitempty"`
	// Backdate is how long before the present iat is, up to 5m, for verifiers whose clock is behind; 0s by default.
	Backdate Duration `json:"backdate,omitempty"`
	// Claims are further claims, which are texts.
	Claims map[string]string `json:"claims,omitempty"`
	// Header is the header that carries the token, Authorization by default.
	Header string `json:"header,omitempty"`
	// Query is the query parameter that carries it.
	Query string `json:"query,omitempty"`
	// Cookie is the cookie that carries it.
	Cookie string `json:"cookie,omitempty"`
	// Value is the template of what carries it: Bearer {jwt} by default, {jwt} in a query parameter or cookie.
	Value string `json:"value,omitempty"`
}

// OnExceeded says what happens to a plugin over a limit.
type OnExceeded string

// What happens over a limit. The zero value is OnExceededDeny.
const (
	// OnExceededDeny refuses what goes beyond.
	OnExceededDeny OnExceeded = "deny"
	// OnExceededThrottle slows down what can be slowed down, and refuses the rest.
	OnExceededThrottle OnExceeded = "throttle"
	// OnExceededStop stops the plugin until a tenth of the limit is free again.
	OnExceededStop OnExceeded = "stop"
	// OnExceededKill ends the plugin.
	OnExceededKill OnExceeded = "kill"
)

// Limits bound what is used. The zero Limits bound nothing.
type Limits struct {
	// Requests counts admitted requests and tunnels.
	Requests Limit `json:"requests,omitzero"`
	// Connections counts the plugin's TCP connects that were let through to the sidecar.
	Connections Limit `json:"connections,omitzero"`
	// SentBytes and ReceivedBytes are IP bytes on the plugin's side.
	SentBytes     ByteLimit `json:"sentBytes,omitzero"`
	ReceivedBytes ByteLimit `json:"receivedBytes,omitzero"`
	// Syscalls counts the plugin's system calls.
	Syscalls Limit `json:"syscalls,omitzero"`
	// Processes counts the processes that the plugin starts.
	Processes Limit `json:"processes,omitzero"`
	// OnExceeded is deny (the default), throttle, stop or kill.
	OnExceeded OnExceeded `json:"onExceeded,omitempty"`
}
