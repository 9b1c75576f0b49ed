package authz

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// CredentialRef identifies a credential that a rule in force needs. It is
// comparable: equal refs are the same credential.
type CredentialRef struct {
	Plugin   string
	Grant    string
	Name     string
	Path     string        // as vault read expects it; of a TokenJWT, as vault write does for signing
	Lifetime time.Duration // the longest time that a lease or token may be used; 0 without a ceiling
	// Parameters is a JSON object that is sent by POST to a path that requires
	// parameters, as PKI's does; "" reads the path. Its keys are sorted and it has
	// no spaces, as [json.Marshal] writes it, so that equal objects are ==.
	Parameters string
	// TrimNewline removes one line break at the end of each field. Without it a
	// field that ends with one is not used.
	TrimNewline bool
	// Token configures the exchange of Vault's answer for a token; the zero
	// TokenSpec injects the answer itself.
	Token TokenSpec
}

// TokenKind is a kind of token that is obtained for use instead of the
// credential itself.
type TokenKind string

// The kinds of tokens. The zero TokenKind means no token.
const (
	// TokenOAuth2 is an access token from the client credentials grant (RFC 6749,
	// section 4.4). The source returns it as field access_token.
	TokenOAuth2 TokenKind = "oauth2"
	// TokenJWT is a JSON Web Token (RFC 7519), signed by Vault's transit engine.
	// The source returns it as field jwt.
	TokenJWT TokenKind = "jwt"
)

// TokenSpec describes how to obtain a token. It is comparable, and holds no secret.
type TokenSpec struct {
	Kind     TokenKind
	Audience string // the parameter audience of TokenOAuth2, the claim aud of TokenJWT; "" without one

	// Fields of TokenOAuth2.

	TokenURL string // https
	Scopes   string // separated by spaces; "" without scopes
	Style    string // where the client's credentials are sent: StyleHeader or StyleBody
	CA       string // PEM of the authorities that verify TokenURL; "" for the system's
	Extra    string // further parameters of the request, encoded as a form and sorted; "" without any
	// ClientID and ClientSecret are templates over Vault's answer, as written in
	// the grant; [TokenSpec.Client] renders them.
	ClientID, ClientSecret string

	// Fields of TokenJWT.

	Algorithm  string        // as JSON Web Signatures name it, as in RS256
	KeyID      string        // the header kid, with {version} for the version of the signing key; "" without one
	KeyVersion int           // of the signing key; 0 for the latest, or the one that KeyID was first used with
	Backdate   time.Duration // subtracted from the present for iat
	Issuer     string        // the claim iss; "" without one
	Subject    string        // the claim sub; "" without one
	Lifetime   time.Duration // from iat to exp
	Claims     string        // further claims: a JSON object like Parameters, "" without any
}

// The styles of TokenOAuth2 (RFC 6749, section 2.3.1).
const (
	StyleHeader = "header" // HTTP basic authentication
	StyleBody   = "body"   // client_id and client_secret in the form
)

// Client renders the client's credentials of a TokenOAuth2 from the fields of
// Vault's answer. Its error holds no secret.
func (t TokenSpec) Client(fields map[string]Secret) (id string, secret Secret, err error) {
	var parts [2]string
	for i, text := range [...]string{t.ClientID, t.ClientSecret} {
		parsed, err := parseTemplate(text)
		if err == nil {
			parts[i], err = parsed.render(fields)
		}
		if err == nil {
			err = noControls(parts[i])
		}
		if err != nil {
			return "", Secret{}, fmt.Errorf("render client credentials: %w", err)
		}
	}
	return parts[0], NewSecret(parts[1]), nil
}

// Credential is a current credential. Its fields are secret.
type Credential struct {
	// Fields are the fields of Vault's answer, by name.
	Fields map[string]Secret
	// PEM are the fields that are PEM documents, such as a certificate and its key.
	// They span several lines, so headers cannot carry them.
	PEM map[string]Secret
	// Unusable gives the reason for each other field, as in "is empty".
	Unusable map[string]string
	// Generation grows each time the credential's value is replaced.
	Generation uint64
	// Lease is Vault's lease id, "" if the credential has no lease.
	Lease string
	// Uses counts the accesses that carry the value. A nil Uses counts nothing.
	Uses *Uses
	// Term is the life of the value, for accesses that last. A nil Term never ends.
	Term *Term
	// NotAfter is when the value expires: the earlier of the ends of its lease and
	// its token. Zero if it does not expire.
	NotAfter time.Time
}

// CredentialSource leases credentials. Credential MUST return one that is
// valid now and MUST NOT return one past its NotAfter; it MUST respect ctx; it
// MUST be safe for concurrent use. Its error denies the request, and MUST NOT
// hold a secret. An error with a method RetryAfter() time.Duration sets when the
// plugin should try again.
type CredentialSource interface {
	Credential(ctx context.Context, ref CredentialRef) (Credential, error)
}

// Placeholder is a substitute for a credential in the plugin's environment: it
// has the credential's shape, so that client libraries start, and is worthless. The
// package that starts the plugin makes its random part.
type Placeholder struct {
	Grant, Credential string
	Env               string // name of the environment variable
	Like              string // text with one {N}, which becomes N random letters and digits
}

// Bounds of a placeholder's random part. A shorter one could occur in a request
// by chance.
const (
	minRandom      = 8
	maxRandom      = 256
	maxPlaceholder = 512 // bytes of the whole
)

// Parts returns the text before the random part, the number of its letters and
// digits [A-Za-z0-9], and the text after it.
func (p Placeholder) Parts() (before string, random int, after string, err error) {
	before, rest, opened := strings.Cut(p.Like, "{")
	number, after, closed := strings.Cut(rest, "}")
	random, notNumber := strconv.Atoi(number)
	switch {
	case !opened || !closed || notNumber != nil || strings.Trim(number, "0123456789") != "" || number[0] == '0' || strings.ContainsAny(before+after, "{}"):
		return "", 0, "", errors.New(`does not hold exactly one {N}, the number of random characters; write one, as in "sk_live_{24}"`)
	case random < minRandom || random > maxRandom:
		return "", 0, "", fmt.Errorf("has %s random characters; write from {%d} to {%d}", clip(number), minRandom, maxRandom)
	case len(before)+random+len(after) > maxPlaceholder:
		return "", 0, "", fmt.Errorf("is longer than %d bytes when rendered; shorten it", maxPlaceholder)
	}
	for _, b := range []byte(before + after) {
		if b <= ' ' || b >= 0x7f {
			return "", 0, "", errors.New("holds a space, a control byte or a byte outside ASCII; write letters, digits and punctuation")
		}
	}
	return before, random, after, nil
}
