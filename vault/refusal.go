package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const (
	// refusedRetry is how long a login that Vault has refused is not tried again
	// while the files it is made of stay as they are.
	refusedRetry = 5 * time.Minute
	// refusedRoleRetry is refusedAgain for AppRole from the second refusal on. Vault
	// locks a role for every host after five refused logins, and forgets them after
	// 15 minutes without another (Vault documentation, "User lockout"): a try every
	// five minutes would lock the role in the end.
	refusedRoleRetry = 16 * time.Minute
	// fileCheckInterval is how often the files of a refused login are looked at.
	fileCheckInterval = time.Second
)

// refusal is a login that Vault has refused. Tried again with the same proof it would be
// refused again, and count against the role. It is guarded by authenticator.mu, and only
// the fields of the file checks change.
type refusal struct {
	cause  error    // the first with these files
	latest error    // the last one, when it is another than cause
	before error    // with the files that these have replaced
	count  int      // in a row
	at     dualTime // of the last
	again  dualTime // when it is tried with the same files

	files    string // the fingerprint of what was refused
	lastSeen string // at the last look
	checking bool   // a look is under way
	checkAt  dualTime
	changed  bool // the files are others now, and complete
}

// refusedError is a login that Vault has refused, in words for the operator.
type refusedError struct {
	err  error // the first answer of Vault
	text string
}

func (e *refusedError) Error() string { return e.text }

func (e *refusedError) Unwrap() error { return e.err }

// isRefusal reports whether Vault has refused the credentials of the login, or returned a
// token that is not accepted. Errors of Vault's state, of the network or of a local file
// are not refusals.
func isRefusal(err error) bool {
	switch statusOf(err) {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return true
	}
	return isFinal(err) || errors.Is(err, errRoot)
}

// recordRefusal notes a refused login and returns how long it is not tried again, and
// what it is refused for, in words. The caller holds mu.
func (a *authenticator) recordRefusal(err error, now dualTime) (time.Duration, error) {
	r := &refusal{cause: err, count: 1, at: now, files: a.loginFiles, checkAt: now.add(fileCheckInterval)}
	if last := a.refusal; last != nil {
		r.count = last.count + 1
		if last.files == r.files {
			r.cause, r.before = last.cause, last.before
			if err.Error() != last.cause.Error() {
				r.latest = err
			}
		} else if err.Error() != last.cause.Error() {
			r.before = last.cause
		}
	}
	wait := refusedRetry
	if a.cfg.auth.Method == MethodAppRole && r.count > 1 {
		wait = refusedRoleRetry
	}
	r.again, r.lastSeen = now.add(wait), r.files
	a.refusal = r
	a.loginAt = r.again
	return wait, a.describe(r, wait)
}

// describe returns an error with the refusal and the condition that ends it.
func (a *authenticator) describe(r *refusal, wait time.Duration) error {
	text := r.cause.Error()
	if r.latest != nil {
		text += "; then: " + r.latest.Error()
	}
	if r.before != nil {
		text += "; with the files before: " + r.before.Error()
	}
	text += fmt.Sprintf("; tried again when the files of the login change, or after %s", wait)
	if a.cfg.auth.Method == MethodAppRole && !isFinal(r.cause) {
		last := r.cause
		if r.latest != nil {
			last = r.latest
		}
		if statusOf(last) == http.StatusForbidden {
			text += "; Vault may have locked the role, for every host and 15 minutes by default, after five refused logins"
		} else {
			text += "; five refused logins lock the role for every host"
		}
	}
	return &refusedError{err: r.cause, text: text}
}

// changedWait is how soon after a refused login another one may be made of files
// that have changed since: the first change is tried almost at once, and who
// writes one wrong secret after the other does not lock the role within minutes.
func (r *refusal) changedWait() time.Duration {
	wait := 2 * time.Second
	for range min(r.count, 5) - 1 {
		wait *= 4
	}
	return min(wait, refusedRetry)
}

// maintainRefusal looks at the files of a refused login, when that is due, and has
// the login tried as soon as they have changed. It returns when to call it again.
func (a *authenticator) maintainRefusal(ctx context.Context, now dualTime) dualTime {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.refusal
	switch {
	case r == nil || r.checking:
		return never()
	case r.changed: // until the login is tried
		return r.at.add(r.changedWait())
	case now.before(r.checkAt):
		return r.checkAt
	}
	r.checking = true
	a.cfg.tasks.run(ctx, func(context.Context) { a.checkFiles(r) })
	return never()
}

// checkFiles looks at the files of a refused login. They have changed when two looks
// in a row find the same other ones: who writes a file may be in the midst of it.
func (a *authenticator) checkFiles(r *refusal) {
	files, complete := a.cfg.auth.fingerprint()
	a.mu.Lock()
	defer a.mu.Unlock()
	r.checking, r.checkAt = false, a.now().add(fileCheckInterval)
	if a.refusal == r && complete && files != r.files && files == r.lastSeen {
		r.changed = true
		a.loginAt = r.at.add(r.changedWait())
	}
	if complete {
		r.lastSeen = files
	}
	a.cfg.wakeUp()
}

// checkFilesNow is look for who does not run the schedule: it waits for what is found.
func (a *authenticator) checkFilesNow() {
	now := a.now()
	a.mu.Lock()
	r := a.refusal
	due := r != nil && !r.checking && !r.changed && !now.before(r.checkAt)
	if due {
		r.checking = true
	}
	a.mu.Unlock()
	if due {
		a.checkFiles(r)
	}
}

// TryLogin repeats a login that Vault has refused, without waiting for its next time. An
// operator asks for it after correcting the cause in Vault.
func (b *Broker) TryLogin() { b.login.tryAgain() }

func (a *authenticator) tryAgain() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refusal != nil {
		a.loginAt = a.refusal.at.add(a.refusal.changedWait())
		a.cfg.wakeUp()
	}
}

// fingerprint returns a name for what the files of the login hold now, and
// whether each is there and holds something.
func (a *Auth) fingerprint() (name string, complete bool) {
	hash, complete := sha256.New(), true
	for _, path := range []string{a.TokenFile, a.RoleIDFile, a.SecretIDFile, a.JWTFile, a.CertFile, a.KeyFile} {
		if path == "" {
			continue
		}
		text, err := readSome(path)
		complete = complete && err == nil && len(text) > 0
		part := sha256.Sum256(text)
		hash.Write(part[:])
	}
	return hex.EncodeToString(hash.Sum(nil)), complete
}

// readSome returns what a file holds, up to 64 KiB.
func readSome(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, 64<<10))
}
