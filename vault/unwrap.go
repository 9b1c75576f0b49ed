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

// wrapped is what became of a wrapping token. It is guarded by Broker.door:
// one caller at a time logs in.
type wrapped struct {
	token    string       // its hash; "" before the first
	secretID authz.Secret // what was in it
	err      error        // or why it is not used
}

// unwrap returns the secret id that the file's wrapping token holds. A wrapping
// token works once. That it does not is how one learns that somebody else had
// it, so each is looked at once, unwrapped once, and its failure is an incident
// in the audit log. The secret id is kept in memory for logging in again.
func (b *Broker) unwrap(ctx context.Context) (authz.Secret, error) {
	token, err := readSecret(b.cfg.Auth.SecretIDFile)
	if err != nil && !b.wrapped.secretID.Empty() {
		return b.wrapped.secretID, nil // an agent may remove the file once it was read
	}
	if err != nil {
		return authz.Secret{}, fmt.Errorf("read wrapped secret id: %w", err)
	}
	hash := fingerprint(token)
	if hash == b.wrapped.token {
		return b.wrapped.secretID, b.wrapped.err
	}
	b.mu.RLock()
	spent := b.usedWrap == hash
	b.mu.RUnlock()
	if spent {
		return authz.Secret{}, errors.New("unwrap secret id: an earlier run of this sidecar did, and keeps nothing; put a new wrapping token into the file")
	}
	secretID, err := b.unwrapOnce(ctx, token, hash)
	if err != nil && !isFinal(err) {
		return authz.Secret{}, err // the token is as good as before
	}
	b.wrapped = wrapped{token: hash, secretID: secretID, err: err}
	if err != nil {
		b.recordIncident(err)
	}
	return secretID, err
}

// finalError says that a wrapping token is of no use any more.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func isFinal(err error) bool {
	var final finalError
	return errors.As(err, &final)
}

// lookUpWrapped reports whether a wrapping token can be unwrapped and was made
// where it should be, without using it up.
func (b *Broker) lookUpWrapped(ctx context.Context, token authz.Secret) error {
	answer, err := b.client.do(ctx, call{
		op: "look up wrapped secret id", method: http.MethodPost, path: "sys/wrapping/lookup",
		body: map[string]any{"token": token.Reveal()},
	})
	if err != nil && !isTransient(err) {
		return finalError{fmt.Errorf("%w: it has ended, or somebody else unwrapped it", err)}
	}
	if err != nil {
		return err
	}
	var path any
	if answer != nil {
		path = answer.Data["creation_path"]
	}
	if path != b.cfg.Auth.WrapPath {
		return finalError{fmt.Errorf("look up wrapped secret id: it was wrapped by %.100q and not by %q: somebody else may have wrapped it",
			path, b.cfg.Auth.WrapPath)}
	}
	return nil
}

func (b *Broker) unwrapOnce(ctx context.Context, token authz.Secret, hash string) (authz.Secret, error) {
	if err := b.lookUpWrapped(ctx, token); err != nil {
		return authz.Secret{}, err
	}
	b.storeUsedWrap(hash)
	answer, err := b.client.do(ctx, call{op: "unwrap secret id", method: http.MethodPost, path: "sys/wrapping/unwrap", token: token})
	if e := (*Error)(nil); errors.As(err, &e) && isTransient(err) && !e.ambiguous {
		b.storeUsedWrap("") // Vault has not done it
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

// storeUsedWrap notes on disk which wrapping token is used up, so that the next sidecar
// does not take that for a theft.
func (b *Broker) storeUsedWrap(hash string) {
	b.mu.Lock()
	b.usedWrap = hash
	b.unlockAndNotify()
	b.saveState()
}

// recordIncident tells the audit log and operators what somebody must look into.
func (b *Broker) recordIncident(err error) {
	b.mu.Lock()
	b.record("incident", authz.CredentialRef{}, "", err.Error())
	b.unlockAndNotify()
	b.log.Error("the wrapped secret id cannot be trusted: find out who had it, then put a new wrapping token into the file", zap.Error(err))
}

// fingerprint returns a name for a token that does not give it away: a token
// of Vault's is random and long, so its hash cannot be turned back.
func fingerprint(token authz.Secret) string {
	sum := sha256.Sum256([]byte(token.Reveal()))
	return hex.EncodeToString(sum[:])
}
