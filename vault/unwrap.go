package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

// wrapped is the outcome of unwrapping a token. It is guarded by authenticator.loginSem:
// one caller at a time logs in.
type wrapped struct {
	token    string       // its hash; "" before the first
	secretID authz.Secret // the secret id in it
	err      error        // or why it is not used
}

// unwrap returns the secret id that the file's wrapping token holds. A wrapping token works
// once. If it does not, another party used it: each token is therefore looked up once and
// unwrapped once, and a failure is an incident in the audit log. The secret id is kept in
// memory for logging in again.
func (a *authenticator) unwrap(ctx context.Context) (authz.Secret, error) {
	token, err := readSecret(a.cfg.auth.SecretIDFile)
	if err != nil && !a.wrapped.secretID.Empty() {
		return a.wrapped.secretID, nil // an agent may remove the file once it was read
	}
	if err != nil {
		return authz.Secret{}, fmt.Errorf("read wrapped secret id: %w", err)
	}
	hash := fingerprint(token)
	if hash == a.wrapped.token {
		return a.wrapped.secretID, a.wrapped.err
	}
	if a.cfg.store.usedWrap() == hash {
		return authz.Secret{}, errors.New("unwrap secret id: an earlier run of this sidecar unwrapped this token; put a new wrapping token into the file")
	}
	secretID, err := a.unwrapOnce(ctx, token, hash)
	if err != nil && !isFinal(err) {
		return authz.Secret{}, err // the token is as good as before
	}
	a.wrapped = wrapped{token: hash, secretID: secretID, err: err}
	if err != nil {
		a.recordIncident(err)
	}
	return secretID, err
}

// finalError is the error of a wrapping token that cannot be used any more.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func isFinal(err error) bool {
	var final finalError
	return errors.As(err, &final)
}

// lookUpWrapped reports whether a wrapping token can be unwrapped and was made
// where it should be, without using it up.
func (a *authenticator) lookUpWrapped(ctx context.Context, token authz.Secret) error {
	answer, err := a.cfg.client.do(ctx, call{
		op: "look up wrapped secret id", method: http.MethodPost, path: "sys/wrapping/lookup",
		body: map[string]any{"token": token.Reveal()},
	})
	if err != nil && !isTransient(err) {
		return finalError{fmt.Errorf("%w: it has expired, or another party unwrapped it", err)}
	}
	if err != nil {
		return err
	}
	var path any
	if answer != nil {
		path = answer.Data["creation_path"]
	}
	if path != a.cfg.auth.WrapPath {
		return finalError{fmt.Errorf("look up wrapped secret id: it was wrapped by %.100q and not by %q: another party may have wrapped it",
			path, a.cfg.auth.WrapPath)}
	}
	return nil
}

func (a *authenticator) unwrapOnce(ctx context.Context, token authz.Secret, hash string) (authz.Secret, error) {
	if err := a.lookUpWrapped(ctx, token); err != nil {
		return authz.Secret{}, err
	}
	a.cfg.store.setUsedWrap(hash)
	answer, err := a.cfg.client.do(ctx, call{op: "unwrap secret id", method: http.MethodPost, path: "sys/wrapping/unwrap", token: token})
	if e := (*Error)(nil); errors.As(err, &e) && isTransient(err) && !e.ambiguous {
		a.cfg.store.setUsedWrap("") // Vault has not done it
		return authz.Secret{}, err
	}
	if err != nil {
		return authz.Secret{}, finalError{err}
	}
	var text string
	if answer != nil {
		text, _ = answer.Data["secret_id"].(string)
	}
	if text == "" {
		return authz.Secret{}, finalError{errors.New("unwrap secret id: the answer has none")}
	}
	return authz.NewSecret(text), nil
}

// recordIncident reports a misused wrapping token in the audit log and the log.
func (a *authenticator) recordIncident(err error) {
	a.cfg.outbox.record("incident", authz.CredentialRef{}, "", err.Error())
	a.cfg.outbox.flush()
	a.cfg.log.Error("wrapped secret id not trusted", zap.Error(err), zap.String("fix", "find out who unwrapped it, then put a new wrapping token into the file"))
}

// fingerprint returns a name for a token that does not give it away: a token
// of Vault's is random and long, so its hash cannot be turned back.
func fingerprint(token authz.Secret) string {
	sum := sha256.Sum256([]byte(token.Reveal()))
	return hex.EncodeToString(sum[:])
}
