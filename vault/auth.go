package vault

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

// Method is a way to log in to Vault.
type Method string

// The methods.
const (
	MethodToken      Method = "token"
	MethodAppRole    Method = "approle"
	MethodKubernetes Method = "kubernetes"
	MethodJWT        Method = "jwt"
	MethodCert       Method = "cert"
)

// serviceAccountToken is where Kubernetes puts the token of a pod's service
// account (Kubernetes documentation, "Configure Service Accounts for Pods").
const serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token" //nolint:gosec // a path

// Auth says how to log in. Its files are read again at each login, so that
// what an agent or a cluster renews on disk is taken up.
type Auth struct {
	Method Method
	// Mount is where the method is mounted; "" is the method's own name.
	Mount string
	// Role is the role to log in to: required for MethodKubernetes; "" is the
	// mount's default for MethodJWT, and any that the certificate fits for
	// MethodCert. For MethodAppRole it is the role's name, which only
	// SecretIDWrapped needs.
	Role string
	// TokenFile holds a token that somebody else gave us, for MethodToken. It
	// is renewed if Vault allows, and never revoked.
	TokenFile string
	// RoleIDFile and SecretIDFile are for MethodAppRole. A role that needs no
	// secret id (bind_secret_id=false) has no SecretIDFile.
	RoleIDFile   string
	SecretIDFile string
	// SecretIDWrapped says that SecretIDFile holds a response-wrapping token
	// and not the secret id. It is unwrapped once, and the secret id is kept in
	// memory alone, for logging in again: after a restart the file must hold a
	// new wrapping token.
	SecretIDWrapped bool
	// WrapPath is the path of Vault's that must have made what is wrapped; ""
	// is auth/MOUNT/role/ROLE/secret-id. Who steals a wrapping token and wraps
	// another secret id in its place cannot make it of that path.
	WrapPath string
	// JWTFile holds the token to log in with for MethodJWT and, unless it is
	// the pod's own, for MethodKubernetes.
	JWTFile string
	// CertFile and KeyFile are the PEM key pair for MethodCert.
	CertFile, KeyFile string
}

func (a *Auth) validate() error {
	if err := a.required(); err != nil {
		return err
	}
	if a.Mount = strings.Trim(a.Mount, "/"); a.Mount == "" {
		a.Mount = string(a.Method)
	}
	if err := checkPath(a.Mount); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if a.WrapPath = strings.Trim(a.WrapPath, "/"); a.WrapPath == "" {
		a.WrapPath = "auth/" + a.Mount + "/role/" + a.Role + "/secret-id"
	}
	if a.Method == MethodKubernetes && a.JWTFile == "" {
		a.JWTFile = serviceAccountToken
	}
	return nil
}

// required says what the method needs and does not have.
func (a *Auth) required() error {
	var lacks string
	switch a.Method {
	case MethodToken:
		lacks = missing("a token file", a.TokenFile)
	case MethodAppRole:
		lacks = missing("a role id file", a.RoleIDFile)
		if lacks == "" && a.SecretIDWrapped {
			lacks = missing("a secret id file, since the secret id is wrapped", a.SecretIDFile) +
				missing("a role or the path that wraps its secret ids", a.Role+a.WrapPath)
		}
	case MethodKubernetes:
		lacks = missing("a role", a.Role)
	case MethodJWT:
		lacks = missing("a token file (JWT)", a.JWTFile)
	case MethodCert:
		if lacks = missing("a certificate file", a.CertFile); lacks == "" {
			lacks = missing("a key file", a.KeyFile)
		}
	default:
		return fmt.Errorf("method %q is not token, approle, kubernetes, jwt or cert", a.Method)
	}
	if lacks != "" {
		return fmt.Errorf("method %s needs %s", a.Method, lacks)
	}
	return nil
}

func missing(what, value string) string {
	if value == "" {
		return what
	}
	return ""
}

// keyPair returns what [tls.Config] asks for when Vault wants a certificate,
// nil when there is none to show. The files are read for each connection, also
// because Vault renews the token of a login by certificate only on a connection
// that shows the same one (Vault API, "TLS certificate auth method").
func (a *Auth) keyPair() func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if a.Method != MethodCert {
		return nil
	}
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(a.CertFile, a.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read key pair to log in with: %w", err)
		}
		return &pair, nil
	}
}

// logIn gets a new session. A login whose answer is lost leaves a token behind
// that holds nothing and ends by itself.
func (b *Broker) logIn(ctx context.Context) (*session, error) {
	if b.cfg.Auth.Method == MethodToken {
		return b.loginByToken(ctx)
	}
	body, err := b.loginBody(ctx)
	if err != nil {
		return nil, err
	}
	op := "log in by " + string(b.cfg.Auth.Method)
	issued := b.now()
	var more loginAnswer
	answer, err := b.client.do(ctx, call{
		op: op, method: http.MethodPost, path: "auth/" + b.cfg.Auth.Mount + "/login", body: body, into: &more,
	})
	if err != nil {
		return nil, err
	}
	if answer == nil || answer.Auth == nil || answer.Auth.ClientToken == "" {
		return nil, fmt.Errorf("%s: the answer has no token (multi-factor login is not supported)", op)
	}
	auth := answer.Auth
	s := b.newSession(issued, authz.NewSecret(auth.ClientToken), auth.Accessor, seconds(auth.LeaseDuration), auth.Renewable)
	s.ours = true
	s.batch = more.Auth.TokenType == typeBatch || auth.Accessor == ""
	if slices.Contains(auth.Policies, rootPolicy) {
		return nil, errors.Join(fmt.Errorf("%s: %w", op, errRoot), b.revokeToken(ctx, s))
	}
	b.warnTokenKind(s, more.Auth.NumUses)
	return s, nil
}

// loginAnswer is what vault/api leaves out of the answer to a login.
type loginAnswer struct {
	Auth struct {
		TokenType string `json:"token_type"`
		NumUses   int    `json:"num_uses"`
	} `json:"auth"`
}

const (
	typeBatch  = "batch"
	rootPolicy = "root"
)

var errRoot = errors.New("it is a root token; give the sidecar one that may read its credentials and nothing else")

// warnTokenKind tells operators of a kind of token that will surprise them.
func (b *Broker) warnTokenKind(s *session, uses int) {
	if s.batch {
		b.log.Warn("it is a batch token, which Vault cannot revoke: only values without a lease are read with it; set token_type=service")
	}
	if uses > 0 {
		b.log.Warn("the token may be used a limited number of times, and every request to Vault spends one", zap.Int("left", uses))
	}
}

// loginBody returns what to log in with.
func (b *Broker) loginBody(ctx context.Context) (map[string]any, error) {
	auth := &b.cfg.Auth
	body := map[string]any{}
	switch auth.Method {
	case MethodAppRole:
		return b.appRoleBody(ctx)
	case MethodCert: // the connection proves it
		if auth.Role != "" {
			body["name"] = auth.Role
		}
	default: // MethodKubernetes, MethodJWT
		token, err := readSecret(auth.JWTFile)
		if err != nil {
			return nil, fmt.Errorf("read token to log in with: %w", err)
		}
		body["jwt"] = token.Reveal()
		if auth.Role != "" {
			body["role"] = auth.Role
		}
	}
	return body, nil
}

func (b *Broker) appRoleBody(ctx context.Context) (map[string]any, error) {
	auth := &b.cfg.Auth
	roleID, err := readSecret(auth.RoleIDFile)
	if err != nil {
		return nil, fmt.Errorf("read role id: %w", err)
	}
	body := map[string]any{"role_id": roleID.Reveal()}
	if auth.SecretIDFile == "" {
		return body, nil
	}
	secretID, err := b.secretID(ctx)
	if err != nil {
		return nil, err
	}
	body["secret_id"] = secretID.Reveal()
	return body, nil
}

func (b *Broker) secretID(ctx context.Context) (authz.Secret, error) {
	if b.cfg.Auth.SecretIDWrapped {
		return b.unwrap(ctx)
	}
	secretID, err := readSecret(b.cfg.Auth.SecretIDFile)
	if err != nil {
		return authz.Secret{}, fmt.Errorf("read secret id: %w", err)
	}
	return secretID, nil
}
