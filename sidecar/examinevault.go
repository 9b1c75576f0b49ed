package sidecar

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/internal/admin"
	"github.com/chaperone-proxy/chaperone/internal/phrase"
	"github.com/chaperone-proxy/chaperone/vault"
)

const examinePatience = 10 * time.Second // for what doctor asks Vault

// checkVault reports whether the sidecar can log in to Vault. One that runs is
// asked; otherwise Vault is asked what uses nothing up, or with logIn logged in to. After
// a login the roles of databases are compared with the rules.
func checkVault(ctx context.Context, e Examination) []Finding {
	cfg := e.Config
	if running, ok := e.Running(ctx); ok {
		return vaultOfRunning(running, cfg.Sidecar.Vault.Address)
	}
	spec := cfg.Sidecar.Vault
	var roles []Finding
	out := vaultFinding("login to Vault " + spec.Address)
	broker, err := vault.New(brokerConfig(cfg.Sidecar.Plugin, spec, zap.NewNop()))
	if err == nil {
		bounded, cancel := context.WithTimeout(ctx, examinePatience)
		defer cancel()
		var made vault.Examination
		switch made, err = broker.Examine(bounded, e.LogIn); made {
		case vault.ExaminedWrapped:
			out.Code = "vault.wrapped_secret_id"
			out.Name = "wrapped secret id at Vault " + spec.Address + " (looked up and left wrapped; a login would use it up, and was not tried)"
		case vault.ExaminedVault:
			out.Code, out.Name = "vault.reached", "Vault "+spec.Address
			if err == nil {
				out.Name += " answers, and the files of the login hold what they should (a login may use something up, and was not tried; --login does)"
			}
		case vault.ExaminedLogin:
			if err == nil {
				roles = checkDatabaseRoles(bounded, cfg, broker)
			}
			err = errors.Join(err, logout(bounded, broker))
		}
	}
	if err != nil {
		out.OK, out.Problem = false, err.Error()
	}
	return append([]Finding{out}, roles...)
}

func vaultFinding(name string) Finding {
	return Finding{
		Name: name, Category: "vault", Code: "vault.login", OK: true, Required: true, Lost: "rules with a credential answer credential_unavailable",
		Remedy: "check spec.vault: address, caFile, and the files of auth",
	}
}

// vaultOfRunning returns what a running sidecar reports of Vault: its login, and the
// credentials that it cannot give.
func vaultOfRunning(status admin.Status, address string) []Finding {
	login := vaultFinding(fmt.Sprintf("login to Vault %s (of the sidecar that runs, pid %d)", address, status.PID))
	for _, check := range status.Checks {
		if check.Name == "vault" && !check.OK {
			login.OK, login.Problem = false, check.Detail
		}
	}
	out := []Finding{login}
	for _, credential := range status.Credentials {
		if credential.State != vault.StateUnavailable && credential.State != vault.StateFailing {
			continue
		}
		out = append(out, Finding{
			Name: "credential " + phrase.Rule(credential.Grant, credential.Name), Category: "vault", Code: "vault.credential",
			Required: credential.State == vault.StateUnavailable, Problem: credential.State + ": " + credential.Detail,
			Lost:   "rules with it answer credential_unavailable",
			Remedy: "put right what Vault has at its path, or the grant's inject",
		})
	}
	return out
}

// logout ends a broker that has logged in: its Run revokes what it holds when
// its context ends.
func logout(ctx context.Context, broker *vault.Broker) error {
	ended, end := context.WithCancel(ctx)
	end()
	return broker.Run(ended)
}
