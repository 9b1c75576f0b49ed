package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// Examination is how far [Broker.Examine] has gone.
type Examination string

// The examinations, from the least that is known to the most.
const (
	ExaminedVault   Examination = "vault"   // Vault answers and the files hold what they should; a login was not made
	ExaminedWrapped Examination = "wrapped" // also, the wrapped secret id is there to be unwrapped
	ExaminedLogin   Examination = "login"   // it has logged in
)

// Examine reports whether the login can succeed, and makes none that may use something up:
// an AppRole's secret id and a wrapping token may be good for one use, and whatever is
// asked with the token of a token file spends one of its uses (secret_id_num_uses,
// num_uses). With logIn it logs in nevertheless, except with a wrapped secret id. A login
// that was made is revoked by [Broker.Run], whose context has ended.
func (b *Broker) Examine(ctx context.Context, logIn bool) (Examination, error) {
	return b.login.examine(ctx, logIn)
}

func (a *authenticator) examine(ctx context.Context, logIn bool) (Examination, error) {
	auth := a.cfg.auth
	wrapped := auth.Method == MethodAppRole && auth.SecretIDWrapped
	limited := auth.Method == MethodToken || auth.Method == MethodAppRole && auth.SecretIDFile != ""
	if !wrapped && (logIn || !limited) {
		return ExaminedLogin, a.logInOnce(ctx)
	}
	for _, file := range []string{auth.TokenFile, auth.RoleIDFile, auth.SecretIDFile} {
		if file == "" {
			continue
		}
		if _, err := readSecret(file); err != nil {
			return ExaminedVault, fmt.Errorf("log in by %s: %w", auth.Method, err)
		}
	}
	if !wrapped {
		return ExaminedVault, a.checkHealth(ctx)
	}
	token, err := readSecret(auth.SecretIDFile)
	if err != nil {
		return ExaminedVault, fmt.Errorf("log in by approle: %w", err)
	}
	return ExaminedWrapped, a.lookUpWrapped(ctx, token)
}

// checkHealth reports whether Vault answers and is unsealed, without a token (Vault API,
// "/sys/health").
func (a *authenticator) checkHealth(ctx context.Context) error {
	var health struct {
		Initialized bool `json:"initialized"`
		Sealed      bool `json:"sealed"`
	}
	_, err := a.cfg.client.do(ctx, call{
		op: "look at Vault's health", method: http.MethodGet, path: "sys/health", rootNamespace: true, into: &health,
		query: "standbyok=true&perfstandbyok=true&sealedcode=200&uninitcode=200",
	})
	switch {
	case statusOf(err) >= http.StatusBadRequest && !isTransient(err):
		return nil // it answers, and something in between keeps its health to itself
	case err != nil:
		return err
	case !health.Initialized:
		return errors.New("look at Vault's health: it is not initialised")
	case health.Sealed:
		return errors.New("look at Vault's health: it is sealed")
	}
	return nil
}
