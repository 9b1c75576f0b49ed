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

// refusal is a login that Vault has refused. Tried again with the same proof it
// would be refused again, and count against the role. It is guarded by
// Broker.mu, and does not change but for what looks at the files change.
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
	err  error // what Vault answered first
	text string
}

func (e *refusedError) Error() string { return e.text }
func (e *refusedError) Unwrap() error { return e.err }

// isRefusal reports whether Vault has refused what the login was made of, or has
// given what is not taken. What speaks of Vault's state, of the way to it or of
// a file of ours is none.
func isRefusal(err error) bool {
	switch statusOf(err) {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return true
	}
	return isFinal(err) || errors.Is(err, errRoot)
}

// recordRefusal notes a refused login and returns how long it is not tried again, and
// what it is refused for, in words. The caller holds mu.
func (b *Broker) recordRefusal(err error, now dualTime) (time.Duration, error) {
	r := &refusal{cause: err, count: 1, at: now, files: b.loginFiles, checkAt: now.add(fileCheckInterval)}
	if last := b.refusal; last != nil {
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
	if b.cfg.Auth.Method == MethodAppRole && r.count > 1 {
		wait = refusedRoleRetry
	}
	r.again, r.lastSeen = now.add(wait), r.files
	b.refusal = r
	b.loginAt = r.again
	return wait, b.describe(r, wait)
}

// loseValues takes the values without a lease out of use that were read with a
// token which has ended, when Vault refuses to give another: it is there, and no
// longer has us read them. The caller holds mu.
func (b *Broker) loseValues() {
	for _, e := range b.entries {
		if e.lease != nil && e.lease.id == "" {
			b.lose(e, "Vault refuses the login")
		}
	}
}

// describe says what was refused, and what ends that.
func (b *Broker) describe(r *refusal, wait time.Duration) error {
	text := r.cause.Error()
	if r.latest != nil {
		text += "; then: " + r.latest.Error()
	}
	if r.before != nil {
		text += "; with the files before: " + r.before.Error()
	}
	text += fmt.Sprintf("; tried again when the files of the login change, or after %s", wait)
	if b.cfg.Auth.Method == MethodAppRole && !isFinal(r.cause) {
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
// the login tried as soon as they have changed. The caller holds mu.
func (b *Broker) maintainRefusal(ctx context.Context, now dualTime) dualTime {
	r := b.refusal
	switch {
	case r == nil || r.checking:
		return never()
	case r.changed: // until the login is tried
		return r.at.add(r.changedWait())
	case now.before(r.checkAt):
		return r.checkAt
	}
	r.checking = true
	b.background(ctx, func(context.Context) { b.checkFiles(r) })
	return never()
}

// checkFiles looks at the files of a refused login. They have changed when two looks
// in a row find the same other ones: who writes a file may be in the midst of it.
func (b *Broker) checkFiles(r *refusal) {
	files, complete := b.cfg.Auth.fingerprint()
	b.mu.Lock()
	defer b.unlockAndNotify()
	r.checking, r.checkAt = false, b.now().add(fileCheckInterval)
	if b.refusal == r && complete && files != r.files && files == r.lastSeen {
		r.changed = true
		b.loginAt = r.at.add(r.changedWait())
	}
	if complete {
		r.lastSeen = files
	}
	b.wakeUp()
}

// checkFilesNow is look for who does not run the schedule: it waits for what is found.
func (b *Broker) checkFilesNow() {
	now := b.now()
	b.mu.Lock()
	r := b.refusal
	due := r != nil && !r.checking && !r.changed && !now.before(r.checkAt)
	if due {
		r.checking = true
	}
	b.unlockAndNotify()
	if due {
		b.checkFiles(r)
	}
}

// TryLogin has a login that Vault has refused tried once more at once, as an
// operator asks for who has put right what was wrong with it in Vault.
func (b *Broker) TryLogin() {
	b.mu.Lock()
	defer b.unlockAndNotify()
	if b.refusal != nil {
		b.loginAt = b.refusal.at.add(b.refusal.changedWait())
		b.wakeUp()
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
