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

// Auth is how to log in. Its files are read again at each login, so that what an agent or a
// cluster renews on disk is taken up.
type Auth struct {
	Method Method
	// Mount is where the method is mounted; "" is the method's own name.
	Mount string
	// Role is the role to log in to: required for MethodKubernetes; "" is the
	// mount's default for MethodJWT, and any that the certificate fits for
	// MethodCert. For MethodAppRole it is the role's name, which only
	// SecretIDWrapped needs.
	Role string
	// TokenFile holds a token that was not made by a login of the sidecar, for MethodToken.
	// It is renewed if Vault allows, and never revoked.
	TokenFile string
	// RoleIDFile and SecretIDFile are for MethodAppRole. A role that needs no
	// secret id (bind_secret_id=false) has no SecretIDFile.
	RoleIDFile   string
	SecretIDFile string
	// SecretIDWrapped is set when SecretIDFile holds a response-wrapping token and not the
	// secret id. It is unwrapped once, and the secret id is kept in memory alone, for
	// logging in again: after a restart the file must hold a new wrapping token.
	SecretIDWrapped bool
	// WrapPath is the path of Vault's that must have made what is wrapped; "" is
	// auth/MOUNT/role/ROLE/secret-id. A thief who wraps another secret id in place of a
	// stolen wrapping token cannot do that at this path.
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

// required returns an error for a setting that the method needs and that is missing.
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

// keyPair returns what [tls.Config] asks for when Vault wants a certificate, nil for a
// method without one. The files are read for each connection, also because Vault renews the
// token of a login by certificate only on a connection that shows the same one (Vault API,
// "TLS certificate auth method").
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
func (a *authenticator) logIn(ctx context.Context) (*session, error) {
	if a.cfg.auth.Method == MethodToken {
		return a.loginByToken(ctx)
	}
	body, err := a.loginBody(ctx)
	if err != nil {
		return nil, err
	}
	op := "log in by " + string(a.cfg.auth.Method)
	issued := a.now()
	var more loginAnswer
	answer, err := a.cfg.client.do(ctx, call{
		op: op, method: http.MethodPost, path: "auth/" + a.cfg.auth.Mount + "/login", body: body, into: &more,
	})
	if err != nil {
		return nil, err
	}
	if answer == nil || answer.Auth == nil || answer.Auth.ClientToken == "" {
		return nil, fmt.Errorf("%s: the answer has no token (multi-factor login is not supported)", op)
	}
	auth := answer.Auth
	s := a.newSession(issued, authz.NewSecret(auth.ClientToken), auth.Accessor, seconds(auth.LeaseDuration), auth.Renewable)
	s.ours = true
	s.batch = more.Auth.TokenType == typeBatch || auth.Accessor == ""
	if slices.Contains(auth.Policies, rootPolicy) {
		return nil, errors.Join(fmt.Errorf("%s: %w", op, errRoot), a.revokeToken(ctx, s))
	}
	a.warnTokenKind(s, more.Auth.NumUses)
	return s, nil
}

func (a *authenticator) loginByToken(ctx context.Context) (*session, error) {
	token, err := readSecret(a.cfg.auth.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	issued := a.now()
	answer, err := a.cfg.client.lookupSelf(ctx, token)
	if err != nil {
		return nil, err
	}
	var facts tokenFacts
	if err := facts.from(answer); err != nil {
		return nil, fmt.Errorf("look up token: %w", err)
	}
	if slices.Contains(facts.Policies, rootPolicy) {
		return nil, fmt.Errorf("log in by token: %w", errRoot)
	}
	s := a.newSession(issued, token, facts.Accessor, seconds(facts.TTL), facts.Renewable)
	s.batch = facts.Type == typeBatch
	a.warnTokenKind(s, facts.NumUses)
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

// warnTokenKind warns of tokens with which some credentials fail, or all do after a while.
func (a *authenticator) warnTokenKind(s *session, uses int) {
	if s.batch {
		a.cfg.log.Warn("vault batch token in use", zap.String("effect", "only values without a lease are read: Vault cannot revoke batch tokens"), zap.String("fix", "set token_type=service on the role"))
	}
	if uses > 0 {
		a.cfg.log.Warn("vault token uses limited", zap.Int("uses_left", uses), zap.String("effect", "every request to Vault spends one"), zap.String("fix", "set token_num_uses=0 on the role"))
	}
}

// loginBody returns what to log in with.
func (a *authenticator) loginBody(ctx context.Context) (map[string]any, error) {
	auth := a.cfg.auth
	body := map[string]any{}
	switch auth.Method {
	case MethodAppRole:
		return a.appRoleBody(ctx)
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

func (a *authenticator) appRoleBody(ctx context.Context) (map[string]any, error) {
	auth := a.cfg.auth
	roleID, err := readSecret(auth.RoleIDFile)
	if err != nil {
		return nil, fmt.Errorf("read role id: %w", err)
	}
	body := map[string]any{"role_id": roleID.Reveal()}
	if auth.SecretIDFile == "" {
		return body, nil
	}
	secretID, err := a.secretID(ctx)
	if err != nil {
		return nil, err
	}
	body["secret_id"] = secretID.Reveal()
	return body, nil
}

func (a *authenticator) secretID(ctx context.Context) (authz.Secret, error) {
	if a.cfg.auth.SecretIDWrapped {
		return a.unwrap(ctx)
	}
	secretID, err := readSecret(a.cfg.auth.SecretIDFile)
	if err != nil {
		return authz.Secret{}, fmt.Errorf("read secret id: %w", err)
	}
	return secretID, nil
}
