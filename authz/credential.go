package authz

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// CredentialRef names a credential that a rule in force needs. It is
// comparable: two that are equal are the same credential.
type CredentialRef struct {
	Plugin   string
	Grant    string
	Name     string
	Path     string        // as vault read takes it; of a TokenJWT, as vault write does to sign
	Lifetime time.Duration // the longest a lease or token may be kept in use; 0 for no ceiling
	// Parameters is a JSON object that is sent by POST to a path that answers to
	// parameters, as PKI's does; "" reads the path. Its keys are sorted and it
	// holds no blanks, as [json.Marshal] writes it, so that equal ones are ==.
	Parameters string
	// TrimNewline takes one line break off the end of each field. Without it a
	// field that ends with one is not used.
	TrimNewline bool
	// Token says how what Path answers is exchanged for what is injected; the
	// zero TokenSpec injects it as it is.
	Token TokenSpec
}

// TokenKind is a way to get a token for each use instead of the credential
// itself.
type TokenKind string

// The kinds of tokens. The zero TokenKind is none.
const (
	// TokenOAuth2 is an access token, got with client credentials (RFC 6749,
	// section 4.4). The source answers with it as field access_token.
	TokenOAuth2 TokenKind = "oauth2"
	// TokenJWT is a JSON Web Token (RFC 7519), signed by Vault's transit engine.
	// The source answers with it as field jwt.
	TokenJWT TokenKind = "jwt"
)

// TokenSpec says how to get a token. It is comparable, and holds no secret.
type TokenSpec struct {
	Kind     TokenKind
	Audience string // the parameter audience of TokenOAuth2, the claim aud of TokenJWT; "" for none

	// Of TokenOAuth2.

	TokenURL string // https
	Scopes   string // separated by blanks; "" for none
	Style    string // where the client's credentials go: StyleHeader or StyleBody
	CA       string // PEM of the authorities that TokenURL is verified against; "" for the system's
	Extra    string // further parameters of the request, encoded as a form and sorted; "" for none
	// ClientID and ClientSecret are templates of what Path answers, as they
	// were written; [TokenSpec.Client] renders them.
	ClientID, ClientSecret string

	// Of TokenJWT.

	Algorithm  string        // as JSON Web Signatures name it, as in RS256
	KeyID      string        // the header kid, with {version} for the version of the key that signs; "" for none
	KeyVersion int           // of the key that signs; 0 for the latest, or the one that KeyID was first used with
	Backdate   time.Duration // how long before the present iat is
	Issuer     string        // the claim iss; "" for none
	Subject    string        // the claim sub; "" for none
	Lifetime   time.Duration // from iat to exp
	Claims     string        // further claims: a JSON object as Parameters is, "" for none
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
	// Fields are those of Vault's answer, by name.
	Fields map[string]Secret
	// PEM are those fields that are PEM documents, as a certificate and its key
	// are. They are of several lines, and no header holds them.
	PEM map[string]Secret
	// Unusable says of those fields that are neither why, as in "is empty".
	Unusable map[string]string
	// Generation grows each time the credential's value is replaced.
	Generation uint64
	// Lease is Vault's lease id, "" when the credential has none.
	Lease string
	// Uses counts the accesses that carry the value. nil counts none.
	Uses *Uses
	// NotAfter is when the value stops being valid: the earlier of its lease's
	// and its token's end. Zero when it does not end.
	NotAfter time.Time
}

// CredentialSource leases credentials. Credential MUST return one that is
// valid now and MUST NOT return one past its NotAfter; it MUST respect ctx; it
// MUST be safe for concurrent use. Its error denies the request, and MUST NOT
// hold a secret. An error with a method RetryAfter() time.Duration tells the
// plugin when to try again.
type CredentialSource interface {
	Credential(ctx context.Context, ref CredentialRef) (Credential, error)
}

// Placeholder is a stand-in for a credential in the plugin's environment: what
// looks like the credential, so that a client library starts, and is worth
// nothing. Whoever starts the plugin makes its random part.
type Placeholder struct {
	Grant, Credential string
	Env               string // the variable's name
	Like              string // text with one {N}, which stands for N random letters and digits
}

// Bounds of what is random in a stand-in. Fewer characters could be in a
// request by chance.
const (
	minRandom      = 8
	maxRandom      = 256
	maxPlaceholder = 512 // bytes of the whole
)

// Parts returns the text before what is random, how many letters and digits
// [A-Za-z0-9] are, and the text after.
func (p Placeholder) Parts() (before string, random int, after string, err error) {
	before, rest, opened := strings.Cut(p.Like, "{")
	number, after, closed := strings.Cut(rest, "}")
	random, notNumber := strconv.Atoi(number)
	switch {
	case !opened || !closed || notNumber != nil || strings.Trim(number, "0123456789") != "" || number[0] == '0' || strings.ContainsAny(before+after, "{}"):
		return "", 0, "", errors.New(`holds not exactly one {N}, the number of random characters, as in "sk_live_{24}"`)
	case random < minRandom || random > maxRandom:
		return "", 0, "", fmt.Errorf("has %s random characters; write from {%d} to {%d}", clip(number), minRandom, maxRandom)
	case len(before)+random+len(after) > maxPlaceholder:
		return "", 0, "", fmt.Errorf("stands for more than %d bytes; write less", maxPlaceholder)
	}
	for _, b := range []byte(before + after) {
		if b <= ' ' || b >= 0x7f {
			return "", 0, "", errors.New("holds a blank, a control byte or a byte outside ASCII; write letters, digits and punctuation")
		}
	}
	return before, random, after, nil
}
