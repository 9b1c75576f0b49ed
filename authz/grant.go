package authz

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Scheme is the protocol of a destination.
type Scheme string

// The schemes that rules may name. SchemeTLS passes TLS through by server name (SNI).
const (
	SchemeHTTPS    Scheme = "https"
	SchemeHTTP     Scheme = "http"
	SchemeTLS      Scheme = "tls"
	SchemeTCP      Scheme = "tcp"
	SchemePostgres Scheme = "postgres"
	SchemeRedis    Scheme = "redis"
)

// schemes returns every scheme, in the order in which they are listed.
func schemes() [6]Scheme {
	return [...]Scheme{SchemeHTTPS, SchemeHTTP, SchemeTLS, SchemeTCP, SchemePostgres, SchemeRedis}
}

// HTTP reports whether requests of the scheme have methods and paths.
func (s Scheme) HTTP() bool { return s == SchemeHTTPS || s == SchemeHTTP }

// Database reports whether the scheme is a database's protocol: the sidecar logs in to
// the server, and decides each statement of a session by its facts.
func (s Scheme) Database() bool { return s.Protocol() != "" }

// Protocol returns the protocol of the facts of a database's statements, "" for any other scheme.
func (s Scheme) Protocol() Protocol {
	switch s {
	case SchemePostgres:
		return ProtocolPostgres
	case SchemeRedis:
		return ProtocolRedis
	case SchemeHTTPS, SchemeHTTP, SchemeTLS, SchemeTCP:
	}
	return ""
}

// shared returns the scheme's constant, so that comparing schemes compares
// pointers.
func (s Scheme) shared() Scheme {
	for _, known := range schemes() {
		if s == known {
			return known
		}
	}
	return s
}

// DefaultPort returns the scheme's port, and 0 for tcp, which has no default port.
func (s Scheme) DefaultPort() uint16 {
	switch s {
	case SchemeHTTPS, SchemeTLS:
		return 443
	case SchemeHTTP:
		return 80
	case SchemePostgres:
		return 5432
	case SchemeRedis:
		return 6379
	case SchemeTCP:
	}
	return 0
}

// Mode selects whether accesses that are not granted are refused or only recorded.
type Mode string

// The modes. The zero Mode is ModeEnforce.
const (
	ModeEnforce Mode = "enforce"
	ModeObserve Mode = "observe"
)

// Origin is the location of a document, for error messages. It is opaque to
// this package.
type Origin string

// Grant holds the permissions of one plugin: the spec of a PluginGrant as written,
// before it is compiled into a [Policy].
type Grant struct {
	Name   string `json:"-"` // metadata.name
	Origin Origin `json:"-"`

	// Plugin is the plugin that receives the grant.
	Plugin string `json:"plugin"`
	// NotAfter is when the grant ends. Every grant ends.
	NotAfter time.Time `json:"notAfter"`
	// Rules are the permissions; at least one.
	Rules []Rule `json:"rules"`
	// Credentials are the credentials that rules may inject.
	Credentials []CredentialSpec `json:"credentials,omitempty"`
	// Limits apply to the whole plugin. The limits of all its grants apply.
	Limits Limits `json:"limits,omitzero"`
	// Sockets are the Unix sockets that the plugin may use: absolute paths, or @NAME for an abstract one.
	Sockets []string `json:"sockets,omitempty"`
}

// Rule is one least-privilege permission of a grant.
type Rule struct {
	// ID is unique in the grant. Other documents name the rule GRANT/ID.
	ID string `json:"id"`
	// Reason explains to reviewers why the plugin needs the access.
	Reason string `json:"reason"`
	// To is the destination.
	To To `json:"to"`
	// Methods are the HTTP methods; "*" alone is any. Required for http(s) and refused for other schemes.
	Methods []string `json:"methods,omitempty"`
	// Paths are patterns: * is one segment that is not empty, ** is the rest and must be last. Required for http(s) and refused for other schemes.
	Paths []string `json:"paths,omitempty"`
	// Upgrades are the protocols a request may upgrade to, as in websocket or spdy/3.1.
	Upgrades []string `json:"upgrades,omitempty"`
	// EncodedSlash is refuse (the default) or allow, for APIs whose ids contain %2F.
	EncodedSlash string `json:"encodedSlash,omitempty"`
	// Content is what the rule grants of the content of requests, in the fields of their protocol.
	Content
	// Matcher is the condition on the content of requests, which the loader makes from Content.
	Matcher *Matcher `json:"-"`
	// Data are the data that the access carries, and where they may go.
	Data Data `json:"data,omitzero"`
	// Credential names one of the grant's credentials.
	Credential string `json:"credential,omitempty"`
	// WildcardCredential allows the credential for a wildcard host.
	WildcardCredential bool `json:"wildcardCredential,omitempty"`
	// Insecure allows the credential over plain http.
	Insecure bool `json:"insecure,omitempty"`
	// Limits apply to this rule alone.
	Limits Limits `json:"limits,omitzero"`
	// Timeout bounds the whole exchange; unlimited by default.
	Timeout Duration `json:"timeout,omitempty"`
	// NotAfter is when the rule ends, at the latest with the grant.
	NotAfter time.Time `json:"notAfter,omitzero"`
	// Mode is enforce (the default) or observe.
	Mode Mode `json:"mode,omitempty"`
	// ObserveUntil is when mode observe ends; required for it.
	ObserveUntil time.Time `json:"observeUntil,omitzero"`
}

// Data describes the data that an access carries. Regions are enforced at the address of
// each access; Classes and Retention are for risk and compliance.
type Data struct {
	// Classes are the classes of the data: public, internal, confidential and restricted.
	Classes []DataClass `json:"classes,omitempty"`
	// Regions are regions that guardrails define. Only a destination in one of them is allowed: its address, or its exact host, has to be among the region's.
	Regions []string `json:"regions,omitempty"`
	// Retention is how long the destination keeps the data: none, or a duration as in 30d.
	Retention Retention `json:"retention,omitempty"`
}

// IsZero reports whether nothing is stated.
func (d Data) IsZero() bool { return len(d.Classes) == 0 && len(d.Regions) == 0 && d.Retention == "" }

// String returns the data as a file states them, on one line, as in {classes: [internal], regions: [eu]}.
func (d Data) String() string {
	var parts []string
	if len(d.Classes) > 0 {
		words := make([]string, len(d.Classes))
		for i, c := range d.Classes {
			words[i] = yamlString(string(c))
		}
		parts = append(parts, "classes: ["+strings.Join(words, ", ")+"]")
	}
	if len(d.Regions) > 0 {
		words := make([]string, len(d.Regions))
		for i, r := range d.Regions {
			words[i] = yamlString(r)
		}
		parts = append(parts, "regions: ["+strings.Join(words, ", ")+"]")
	}
	if d.Retention != "" {
		parts = append(parts, "retention: "+yamlString(string(d.Retention)))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// DataClass is a class of data, by the harm that its disclosure does.
type DataClass string

// The classes of data, from the least to the most sensitive.
const (
	DataPublic       DataClass = "public"
	DataInternal     DataClass = "internal"
	DataConfidential DataClass = "confidential"
	DataRestricted   DataClass = "restricted"
)

// Retention is how long data are kept: "none", or a [Duration] as written. The zero
// Retention states nothing.
type Retention string

// RetentionNone is the retention of data that are not kept.
const RetentionNone Retention = "none"

// UnmarshalText reads a retention. Its error names the valid forms.
func (r *Retention) UnmarshalText(text []byte) error {
	var d Duration
	if string(text) != string(RetentionNone) && d.UnmarshalText(text) != nil {
		return fmt.Errorf("%q is not a retention; write none, or a whole number above 0 and a unit, as in 24h or 30d", clip(string(text)))
	}
	*r = Retention(text)
	return nil
}

// Duration returns how long data are kept, 0 for none; false if nothing is stated.
func (r Retention) Duration() (time.Duration, bool) {
	var d Duration
	if r == RetentionNone {
		return 0, true
	}
	err := d.UnmarshalText([]byte(r))
	return time.Duration(d), err == nil
}

// Content holds the fields of a rule that a [Matcher] is made from. Names are exact, or
// end in one *. A list that is left out grants none.
type Content struct {
	// Databases are the databases that sessions may use, by name, or by number for redis. Required for postgres and redis.
	Databases []DatabaseName `json:"databases,omitempty"`
	// Statements are the statements of postgres that are granted: each of the verbs on each of the tables.
	Statements *Statements `json:"statements,omitempty"`
	// Opaque is deny (the default) or allow: statements whose effect their text does not show, as of DO, CALL and EVAL, then rest on the role's rights alone.
	Opaque Opaque `json:"opaque,omitempty"`
	// Commands are the commands of redis, as in get, config get or @read.
	Commands []string `json:"commands,omitempty"`
	// Keys are the keys of redis that commands may name.
	Keys []string `json:"keys,omitempty"`
	// Channels are the channels of redis that commands may name.
	Channels []string `json:"channels,omitempty"`
}

// Opaque is whether a rule grants statements whose effect their text does not show.
type Opaque string

// The values of Opaque. The zero value is OpaqueDeny.
const (
	OpaqueDeny  Opaque = "deny"
	OpaqueAllow Opaque = "allow"
)

// Statements are granted statements of SQL. A statement is granted if each of its verbs,
// tables and functions is.
type Statements struct {
	// Verbs are as in select, insert or copy-out.
	Verbs []string `json:"verbs,omitempty"`
	// Tables are SCHEMA.NAME as the server folds names, as in public.orders; catalog stands for the relations of pg_catalog that describe types and structure.
	Tables []string `json:"tables,omitempty"`
	// Functions are SCHEMA.NAME; safe stands for the built-in functions that neither write nor read beyond their arguments.
	Functions []string `json:"functions,omitempty"`
}

// DatabaseName is a database's name, or its number for redis.
type DatabaseName string

// UnmarshalText reads a name or a number.
func (d *DatabaseName) UnmarshalText(text []byte) error {
	*d = DatabaseName(text)
	return nil
}

// To is the destination of a rule.
type To struct {
	// Scheme is https (the default), http, tls, tcp, postgres or redis.
	Scheme Scheme `json:"scheme,omitempty"`
	// Hosts are exact names, *.NAME (one label), **.NAME (one or more) or IP literals.
	Hosts []string `json:"hosts"`
	// Ports default to the scheme's port; tcp has no default.
	Ports []uint16 `json:"ports,omitempty"`
	// Addresses are the addresses that a name may resolve to; by default public unicast only.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// TLS are the terms of the connection to the upstream.
	TLS TLS `json:"tls,omitzero"`
}

// TLS holds a rule's terms for the connection to the upstream.
type TLS struct {
	// Min is the lowest version, "1.2" (the default) or "1.3".
	Min string `json:"min,omitempty"`
	// CAFile is a PEM file, relative to the grant's, that replaces the system's authorities.
	CAFile string `json:"caFile,omitempty"`
	// Originate accepts plain http from the plugin for this https rule.
	Originate bool `json:"originate,omitempty"`

	// CA is the content of CAFile, which the loader reads.
	CA string `json:"-"`
}

// CredentialSpec is one credential of a grant: its source and how it is
// injected.
type CredentialSpec struct {
	// Name is the name that rules use.
	Name string `json:"name"`
	// Vault is its source.
	Vault VaultPath `json:"vault"`
	// Inject is its place in the request: one of header, query, cookie, basic, mtls, sigv4, oauth2, jwt and database.
	Inject Inject `json:"inject"`
	// Placeholder puts a placeholder into the plugin's environment, so that client libraries start; absent by default.
	Placeholder *PlaceholderSpec `json:"placeholder,omitempty"`
}

// VaultPath is a path in Vault from which a credential is read.
type VaultPath struct {
	// Path is as vault read expects it, as in secret/data/weather or database/creds/reporting; for inject.jwt it is MOUNT/sign/KEY.
	Path string `json:"path"`
	// Params are sent to a path that requires parameters, as in pki/issue/ROLE; without them the path is read.
	Params map[string]string `json:"params,omitempty"`
	// TrimNewline removes one line break at the end of each field; without it a field that ends with one is not used.
	TrimNewline bool `json:"trimNewline,omitempty"`
	// NotSecret are fields of a template that are not secret, such as an account's name or a region: answers are not searched for them.
	NotSecret []string `json:"notSecret,omitempty"`
}

// PlaceholderSpec is a placeholder for a credential in the plugin's environment.
// Chaperone replaces it in the credential's slot and refuses it anywhere else.
type PlaceholderSpec struct {
	// Env is the environment variable that holds it.
	Env string `json:"env"`
	// Like is its shape, as in sk_live_{24}: {N} stands for N random letters and digits, 8 to 256 of them.
	Like string `json:"like"`
}

// Inject is the place of a credential in a request. {field} in a template is
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
	// MTLS is a client certificate, presented to the upstream.
	MTLS *MTLS `json:"mtls,omitempty"`
	// SigV4 replaces the signature of requests to AWS.
	SigV4 *SigV4 `json:"sigv4,omitempty"`
	// OAuth2 is an access token from the client credentials grant (RFC 6749, section 4.4).
	OAuth2 *OAuth2 `json:"oauth2,omitempty"`
	// JWT is a JSON Web Token, signed by Vault's transit engine.
	JWT *JWT `json:"jwt,omitempty"`
	// Database is the login of a database's session.
	Database *DatabaseLogin `json:"database,omitempty"`
}

// Describe returns on one line how the credential reaches the upstream, as in
// header Authorization or sigv4 for s3 in eu-west-1.
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
	case i.Database != nil:
		return "database login"
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

// DatabaseLogin holds the two templates of a database's login. The defaults are the
// fields of a database engine's answer.
type DatabaseLogin struct {
	// Username is {username} by default.
	Username string `json:"username,omitempty"`
	// Password is {password} by default.
	Password string `json:"password,omitempty"`
}

// Basic holds the two templates of HTTP basic authentication.
type Basic struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// MTLS names the fields of Vault's answer that hold a client certificate. The
// defaults are the fields of a PKI engine's answer.
type MTLS struct {
	// Certificate is {certificate} by default.
	Certificate string `json:"certificate,omitempty"`
	// PrivateKey is {private_key} by default.
	PrivateKey string `json:"privateKey,omitempty"`
	// Chain is {ca_chain} by default, if the answer has this field.
	Chain string `json:"chain,omitempty"`
}

// SigV4 signs requests with AWS Signature Version 4. The defaults of its
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
	// SessionToken is {security_token} or {session_token} by default, if the answer has this field.
	SessionToken string `json:"sessionToken,omitempty"`
}

// OAuth2 obtains access tokens with client credentials. At most one of Header,
// Query and Cookie is set.
type OAuth2 struct {
	// TokenURL is the token endpoint, as in https://id.example/oauth2/token.
	TokenURL string `json:"tokenURL"`
	// Scopes are the requested scopes.
	Scopes []string `json:"scopes,omitempty"`
	// Audience is the requested audience, if the authorization server supports the parameter.
	Audience string `json:"audience,omitempty"`
	// Parameters are further parameters of the token request, as in resource: https://api.example (RFC 8707).
	Parameters map[string]string `json:"parameters,omitempty"`
	// ClientID is {client_id} by default.
	ClientID string `json:"clientID,omitempty"`
	// ClientSecret is {client_secret} by default.
	ClientSecret string `json:"clientSecret,omitempty"`
	// Style is where the client's credentials are sent: header (the default: HTTP basic authentication) or body.
	Style string `json:"style,omitempty"`
	// CAFile is a PEM file, relative to the grant's, that replaces the system's authorities for TokenURL.
	CAFile string `json:"caFile,omitempty"`
	// Header is the header that carries the token, Authorization by default.
	Header string `json:"header,omitempty"`
	// Query is the query parameter that carries it.
	Query string `json:"query,omitempty"`
	// Cookie is the cookie that carries it.
	Cookie string `json:"cookie,omitempty"`
	// Value is the template of the slot: Bearer {access_token} by default, {access_token} in a query parameter or cookie.
	Value string `json:"value,omitempty"`

	// CA is the content of CAFile, which the loader reads.
	CA string `json:"-"`
}

// JWT signs JSON Web Tokens with Vault's transit engine. At most one of Header,
// Query and Cookie is set.
type JWT struct {
	// Algorithm is RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA, HS256, HS384 or HS512, as the key in Vault supports.
	Algorithm string `json:"algorithm"`
	// KeyID is the header kid; absent by default. {version} in it is the version of the signing key, which a rotation changes.
	KeyID string `json:"keyID,omitempty"`
	// KeyVersion is the version of the signing key: the latest by default or, if keyID is without {version}, the one that signed first.
	KeyVersion int `json:"keyVersion,omitempty"`
	// Issuer is the claim iss; absent by default.
	Issuer string `json:"issuer,omitempty"`
	// Subject is the claim sub; absent by default.
	Subject string `json:"subject,omitempty"`
	// Audience is the claim aud; absent by default.
	Audience string `json:"audience,omitempty"`
	// Lifetime is from 30s to 24h; 5m by default.
	Lifetime Duration `json:"lifetime,omitempty"`
	// Backdate is subtracted from the present for iat, up to 5m, for verifiers whose clock is behind; 0s by default.
	Backdate Duration `json:"backdate,omitempty"`
	// Claims are further claims, whose values are strings.
	Claims map[string]string `json:"claims,omitempty"`
	// Header is the header that carries the token, Authorization by default.
	Header string `json:"header,omitempty"`
	// Query is the query parameter that carries it.
	Query string `json:"query,omitempty"`
	// Cookie is the cookie that carries it.
	Cookie string `json:"cookie,omitempty"`
	// Value is the template of the slot: Bearer {jwt} by default, {jwt} in a query parameter or cookie.
	Value string `json:"value,omitempty"`
}

// OnExceeded is the action on a plugin that exceeds a limit.
type OnExceeded string

// The actions. The zero value is OnExceededDeny.
const (
	// OnExceededDeny refuses accesses beyond the limit.
	OnExceededDeny OnExceeded = "deny"
	// OnExceededThrottle slows accesses down if possible, and refuses the others.
	OnExceededThrottle OnExceeded = "throttle"
	// OnExceededStop stops the plugin until a tenth of the limit is free again.
	OnExceededStop OnExceeded = "stop"
	// OnExceededKill kills the plugin.
	OnExceededKill OnExceeded = "kill"
)

// CountSyscalls is when the plugin's system calls are counted one by one.
type CountSyscalls string

// When system calls are counted. The zero value is CountWhenNear.
const (
	// CountWhenNear counts each call while more than a quarter of the limit is in use,
	// and charges as many calls as the plugin's CPU time has room for until then.
	CountWhenNear CountSyscalls = "whenNear"
	// CountExact counts each call.
	CountExact CountSyscalls = "exact"
)

// Limits bound usage. The zero Limits bound nothing.
type Limits struct {
	// Requests counts admitted requests and tunnels.
	Requests Limit `json:"requests,omitzero"`
	// Connections counts the plugin's TCP connections that the kernel allowed to the sidecar.
	Connections Limit `json:"connections,omitzero"`
	// SentBytes and ReceivedBytes count IP bytes on the plugin's side.
	SentBytes     ByteLimit `json:"sentBytes,omitzero"`
	ReceivedBytes ByteLimit `json:"receivedBytes,omitzero"`
	// Syscalls counts the plugin's system calls.
	Syscalls Limit `json:"syscalls,omitzero"`
	// CountSyscalls is whenNear (the default), which slows no other process down while less than a quarter of the limit is in use, or exact.
	CountSyscalls CountSyscalls `json:"countSyscalls,omitempty"`
	// Processes counts the processes that the plugin starts.
	Processes Limit `json:"processes,omitzero"`
	// OnExceeded is deny (the default), throttle, stop or kill.
	OnExceeded OnExceeded `json:"onExceeded,omitempty"`
}
