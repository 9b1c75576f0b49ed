package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/chaperone-proxy/chaperone/authz"
)

const (
	maxRevoking   = 8                      // revocations sent to Vault at a time
	confirmWithin = 2 * time.Second        // for leases whose token was revoked instead
	confirmEvery  = 100 * time.Millisecond // between looks at whether they are gone
	fetchGrace    = 2 * time.Second        // before what is being fetched is given up
	confirmGrace  = time.Minute            // after a lease's own end it is taken to be gone
	maxKept       = 4                      // replaced leases of one credential that accesses carry; the oldest goes for another
	inUseInterval = time.Second            // between looks at whether an access still carries one
)

// Report says what became of revoking leases.
type Report struct {
	// Leases is how many were to be revoked; values without a lease, as in
	// KV, are none.
	Leases int
	// Confirmed is how many Vault has confirmed to be gone.
	Confirmed int
	// Unconfirmed names the others, masked. Run goes on trying.
	Unconfirmed []string
	// Err is why, nil when all are confirmed.
	Err error
}

// revocation is a lease that is to go, until Vault confirms that it is gone.
// Its fields are guarded by Broker.mu, but id, mount, ref, session and ends,
// which do not change.
type revocation struct {
	id       string
	mount    string // of the engine that a certificate is revoked at; "" for a lease
	ref      authz.CredentialRef
	session  *session // whose token's end ends the lease too; nil for one of an earlier sidecar
	ends     dualTime // by itself
	due      dualTime
	urgent   bool // nobody may use it any more
	running  bool
	done     bool // confirmed, or past its own end
	denied   bool // the policy does not let us revoke leases
	attempts int
	// uses are the accesses that carry it. While there are any it is not revoked
	// before keptUntil, when it ends by itself, unless it is urgent. nil once it is
	// not waited for any more.
	uses      *authz.Uses
	keptUntil dualTime
}

// Retain says which credentials are in force. The leases of all others are
// revoked, and what is being fetched for them too; it returns when Vault has
// confirmed that, or ctx ends. It is called for every generation: what is
// fetched for a credential that no call has named is given back soon.
func (b *Broker) Retain(ctx context.Context, refs []authz.CredentialRef) Report {
	inForce := make(map[authz.CredentialRef]bool, len(refs))
	for _, ref := range refs {
		inForce[ref] = true
	}
	b.mu.Lock()
	b.inForce = inForce
	var dropped []*entry
	for ref, e := range b.entries {
		if !inForce[ref] {
			dropped = append(dropped, e)
		}
	}
	leases, flights := b.drop(dropped)
	b.unlockAndNotify()
	report := b.revokeNow(ctx, leases)
	if orphans := waitFetches(ctx, flights); len(orphans) > 0 {
		report = report.plus(b.revokeNow(ctx, orphans))
	}
	return report
}

// Revoke takes everything from the plugin, for an incident: all leases, and
// the tokens that hold them. The broker then logs in anew, and fetches again
// what is asked for. It returns when Vault has confirmed, or ctx ends. Only
// Run tries again what was not confirmed.
func (b *Broker) Revoke(ctx context.Context) Report {
	b.mu.Lock()
	b.inForce = map[authz.CredentialRef]bool{} // until the next Retain nothing is kept
	b.unlockAndNotify()
	report, err := b.revokeAll(ctx)
	report.Err = errors.Join(report.Err, err)
	b.wakeUp()
	return report
}

// revokeAll revokes every lease and then the tokens, which takes what could
// not be revoked by itself and what was lost track of. The error is of tokens:
// those that it names are queued to be revoked again.
func (b *Broker) revokeAll(ctx context.Context) (Report, error) {
	b.mu.Lock()
	all := make([]*entry, 0, len(b.entries))
	for _, e := range b.entries {
		all = append(all, e)
	}
	_, flights := b.drop(all)
	leases := make([]*revocation, 0, len(b.pending))
	for _, r := range b.pending {
		r.urgent = true
		leases = append(leases, r)
	}
	b.unlockAndNotify()
	report := b.revokeNow(ctx, leases)
	cancelFetches(ctx, flights)
	if orphans := waitFetches(ctx, flights); len(orphans) > 0 {
		leases = append(leases, orphans...)
		report = report.plus(b.revokeNow(ctx, orphans))
	}
	if report.Err == nil {
		b.warnIrrevocable(ctx)
	}
	revoked, err := b.revokeTokens(ctx)
	if revoked > 0 && report.Confirmed < report.Leases {
		report = b.confirm(ctx, leases)
	}
	return report, err
}

// drop takes entries out of use. It returns their leases, queued to be
// revoked, and the flights that are still to land. The caller holds mu.
func (b *Broker) drop(entries []*entry) (leases []*revocation, flights []*fetch) {
	for _, e := range entries {
		delete(b.entries, e.ref)
		if called := (credentialName{e.ref.Grant, e.ref.Name}); b.named[called] == e {
			delete(b.named, called)
		}
		e.dropped = true
		if e.fetch != nil {
			flights = append(flights, e.fetch)
		}
		for _, l := range []*lease{e.lease, e.next} {
			if l != nil && l.id != "" {
				leases = append(leases, b.enqueue(e.ref, l, b.now(), true))
			}
		}
		e.lease, e.next = nil, nil
	}
	return leases, flights
}

// cancelFetches cancels the flights that do not land soon. What Vault is in the midst
// of is better waited for: given up while PostgreSQL commits, it leaves a user
// behind that no lease names, which nothing takes away again.
func cancelFetches(ctx context.Context, flights []*fetch) {
	soon := time.NewTimer(fetchGrace)
	defer soon.Stop()
	defer func() {
		for _, f := range flights {
			f.cancel()
		}
	}()
	for _, f := range flights {
		select {
		case <-f.done:
		case <-ctx.Done():
			return
		case <-soon.C:
			return
		}
	}
}

// waitFetches waits for flights and returns the leases that they got too late.
func waitFetches(ctx context.Context, flights []*fetch) []*revocation {
	var orphans []*revocation
	for _, f := range flights {
		select {
		case <-f.done:
			if f.lateLease != nil {
				orphans = append(orphans, f.lateLease)
			}
		case <-ctx.Done():
			return orphans
		}
	}
	return orphans
}

// enqueue queues a lease to be revoked at due. The caller holds mu.
func (b *Broker) enqueue(ref authz.CredentialRef, l *lease, due dualTime, urgent bool) *revocation {
	return b.queue(&revocation{id: l.id, mount: l.mount, ref: ref, session: l.session, ends: l.ends, due: due, urgent: urgent})
}

// revokeWhenUnused queues a lease to be revoked at due, or later: as soon as no access carries
// it, or by its own end. The caller holds mu.
func (b *Broker) revokeWhenUnused(ref authz.CredentialRef, l *lease, due dualTime) {
	until := l.ends
	if l.mount == "" {
		until = earliest(until, l.session.notAfter)
	}
	r := b.enqueue(ref, l, due, false)
	r.uses, r.keptUntil = l.uses, until
	var oldest *revocation
	kept := 0
	for _, other := range b.pending {
		if other.ref != ref || other.uses == nil || other.urgent {
			continue
		}
		if kept++; oldest == nil || other.keptUntil.before(oldest.keptUntil) {
			oldest = other
		}
	}
	if kept > maxKept {
		oldest.uses = nil
	}
}

// inUse reports whether a lease is not yet to be revoked, since an access carries
// it, or may do so. The caller holds mu.
func (r *revocation) inUse(now dualTime) bool {
	return !r.urgent && r.uses != nil && now.before(r.keptUntil) && (r.uses.Open() || r.uses.Untracked())
}

func (b *Broker) queue(r *revocation) *revocation {
	b.wakeUp()
	if earlier := b.pending[r.id]; earlier != nil {
		earlier.due = earliest(earlier.due, r.due)
		earlier.urgent = earlier.urgent || r.urgent
		return earlier
	}
	b.pending[r.id] = r
	return r
}

// revokeUnused queues a lease that was never in use.
func (b *Broker) revokeUnused(s *session, ref authz.CredentialRef, id string) {
	b.mu.Lock()
	defer b.unlockAndNotify()
	b.queue(&revocation{id: id, ref: ref, session: s, ends: never(), due: b.now(), urgent: true})
}

// revokeNow revokes leases and reports. One that Run is revoking just now may
// be revoked twice, which does no harm.
func (b *Broker) revokeNow(ctx context.Context, leases []*revocation) Report {
	errs := b.forEachRevocation(leases, func(r *revocation) error {
		if b.isDone(r) {
			return nil
		}
		err := b.revokeLease(ctx, r)
		b.finishRevocation(r, err)
		return err
	})
	return b.report(leases, errs)
}

func (b *Broker) isDone(r *revocation) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return r.done
}

// forEachRevocation calls f for each lease, some at a time.
func (b *Broker) forEachRevocation(leases []*revocation, f func(*revocation) error) []error {
	errs := make([]error, len(leases))
	slots := make(chan struct{}, maxRevoking)
	var all sync.WaitGroup
	for i, r := range leases {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(r)
		})
	}
	all.Wait()
	return errs
}

func (b *Broker) report(leases []*revocation, errs []error) Report {
	report := Report{Leases: len(leases)}
	for i, r := range leases {
		if errs[i] == nil {
			report.Confirmed++
			continue
		}
		report.Unconfirmed = append(report.Unconfirmed, mask(r.id))
		if report.Err == nil { // the others fail alike
			report.Err = errs[i]
		}
	}
	slices.Sort(report.Unconfirmed)
	return report
}

func (r Report) plus(o Report) Report {
	return Report{
		Leases: r.Leases + o.Leases, Confirmed: r.Confirmed + o.Confirmed,
		Unconfirmed: append(r.Unconfirmed, o.Unconfirmed...), Err: errors.Join(r.Err, o.Err),
	}
}

// revokeLease revokes one lease. nil means that Vault has confirmed that it is
// gone. Vault answers the same for a lease that it never had.
func (b *Broker) revokeLease(ctx context.Context, r *revocation) error {
	s, err := b.sessionFor(ctx, r)
	if err != nil {
		return err
	}
	if r.mount != "" {
		return b.revokeCertificate(ctx, s, r)
	}
	op := "revoke lease " + mask(r.id)
	_, err = b.client.do(ctx, call{
		op: op, method: http.MethodPut, path: "sys/leases/revoke", token: s.token,
		body: map[string]any{"lease_id": r.id, "sync": true},
	})
	if statusOf(err) != http.StatusForbidden {
		return err
	}
	// The policy does not allow it (the default one does not), or the token
	// has died, and the lease with it. Looking a lease up is allowed.
	gone, lookupErr := b.isGone(ctx, s, r.id)
	if gone {
		return nil
	}
	if b.tokenInvalid(ctx, s, lookupErr) {
		return fmt.Errorf("%s: %s", op, tokenGone)
	}
	return err
}

// revokeCertificate revokes a certificate by its serial number. Revoking one
// twice does no harm (Vault API, "PKI secrets engine", revoke certificate).
func (b *Broker) revokeCertificate(ctx context.Context, s *session, r *revocation) error {
	_, err := b.client.do(ctx, call{
		op: "revoke certificate " + mask(r.id), method: http.MethodPost, path: r.mount + "/revoke", token: s.token,
		body: map[string]any{"serial_number": strings.TrimPrefix(r.id, r.mount+"/cert/")},
	})
	b.tokenInvalid(ctx, s, err)
	return err
}

// isGone asks whether Vault no longer has a lease.
func (b *Broker) isGone(ctx context.Context, s *session, id string) (bool, error) {
	_, err := b.client.do(ctx, call{
		op: "look up lease " + mask(id), method: http.MethodPut, path: "sys/leases/lookup", token: s.token,
		body: map[string]any{"lease_id": id},
	})
	return statusOf(err) == http.StatusBadRequest, err // "invalid lease"
}

// sessionFor returns the session to revoke with: the one that made the lease
// while it lasts, or the one in force.
func (b *Broker) sessionFor(ctx context.Context, r *revocation) (*session, error) {
	now := b.now()
	b.mu.RLock()
	own := r.session.usable(now)
	b.mu.RUnlock()
	if own {
		return r.session, nil
	}
	return b.authenticate(ctx, 0)
}

// finishRevocation notes what came of a revocation.
func (b *Broker) finishRevocation(r *revocation, err error) {
	b.mu.Lock()
	now := b.now()
	r.running = false
	done := r.done
	switch {
	case r.done:
	case err == nil:
		b.removeRevocation(r, "revoked", "")
	case r.mount != "" && statusOf(err) >= http.StatusBadRequest && !isTransient(err) && !isUnknownToken(err):
		// The policy does not let us, or the engine cannot: the certificate
		// ends by itself, and no token takes it along.
		b.removeRevocation(r, "left", "it is not revoked and ends by itself: "+err.Error())
	case !isTransient(err) && r.ends.add(confirmGrace).before(now):
		b.removeRevocation(r, "ended", "it was not revoked and ended by itself: "+err.Error())
	default:
		r.attempts++
		r.due = now.add(b.retryDelay(r.attempts, err))
		if r.attempts == 1 && r.urgent {
			b.record("revocation_unconfirmed", r.ref, r.id, err.Error())
		}
		if statusOf(err) == http.StatusForbidden {
			b.markDenied(r)
		}
	}
	changed := r.done != done
	b.wakeUp()
	b.unlockAndNotify()
	if changed {
		b.saveState()
	}
}

// removeRevocation notes that a lease is gone. The caller holds mu.
func (b *Broker) removeRevocation(r *revocation, what, detail string) {
	r.done = true
	delete(b.pending, r.id)
	delete(b.stored, r.id)
	b.record(what, r.ref, r.id, detail)
}

// markDenied notes that the policy does not let us revoke a lease. The token is then
// replaced and revoked, which ends the lease too. The caller holds mu.
func (b *Broker) markDenied(r *revocation) {
	r.denied = true
	if r.urgent && r.session != nil && r.session == b.session && r.session.ours {
		r.session.untracked, b.rotateAt = true, dualTime{}
	}
}

// confirm looks, with a new token, whether leases have gone whose token was
// revoked, and revokes those that have not.
func (b *Broker) confirm(ctx context.Context, leases []*revocation) Report {
	ctx, cancel := context.WithTimeout(ctx, confirmWithin)
	defer cancel()
	errs := b.forEachRevocation(leases, func(r *revocation) error {
		for {
			err := b.revokeLease(ctx, r)
			if err == nil || isTransient(err) || ctx.Err() != nil {
				b.finishRevocation(r, err)
				return err
			}
			select {
			case <-time.After(confirmEvery):
			case <-ctx.Done():
			}
		}
	})
	return b.report(leases, errs)
}

// revokeTokens revokes the tokens that we logged in for and returns how many
// it has. The session is gone whatever Vault answers.
func (b *Broker) revokeTokens(ctx context.Context) (revoked int, err error) {
	b.mu.Lock()
	tokens := b.retiring
	b.retiring = nil
	if b.session != nil && b.session.ours {
		tokens = append(tokens, b.session)
		b.session = nil
		if b.refusal == nil {
			b.loginAt, b.loginErr = dualTime{}, nil
		}
	}
	for _, s := range tokens {
		s.dead = true
	}
	b.unlockAndNotify()
	for _, s := range tokens {
		refused := b.revokeToken(ctx, s)
		if refused != nil {
			err = errors.Join(err, refused)
			b.retryTokenRevocation(s)
			continue
		}
		revoked++
	}
	return revoked, err
}

// retryTokenRevocation queues a token to be revoked later.
func (b *Broker) retryTokenRevocation(s *session) {
	b.mu.Lock()
	defer b.unlockAndNotify()
	s.attempts++
	s.due = b.now().add(backoff(s.attempts, 1))
	b.retiring = append(b.retiring, s)
	b.wakeUp()
}

// revokeToken revokes a token of ours and so all that it holds.
func (b *Broker) revokeToken(ctx context.Context, s *session) error {
	if !s.ours || s.accessor == "" {
		return nil // not ours, or a batch token, which cannot be revoked
	}
	_, err := b.client.do(ctx, call{
		op: "revoke token " + mask(s.accessor), method: http.MethodPost, path: "auth/token/revoke-self", token: s.token,
	})
	gone := isUnknownToken(err)
	if gone {
		err = nil
	}
	if err == nil {
		b.mu.Lock()
		if gone {
			b.warnUntracked(s)
		}
		b.record("revoked", authz.CredentialRef{}, "", "login token "+mask(s.accessor))
		b.unlockAndNotify()
	}
	return err
}

// mask returns a name for a lease or an accessor that cannot be used as one:
// the path it is of, and a short hash.
func mask(id string) string {
	sum := sha256.Sum256([]byte(id))
	name := hex.EncodeToString(sum[:6])
	if i := strings.LastIndexByte(id, '/'); i >= 0 {
		return id[:i] + "/#" + name
	}
	return "#" + name
}

// state is what the state file holds.
type state struct {
	Leases []storedLease `json:"leases"`
	Spent  string        `json:"spent,omitempty"` // the hash of the wrapping token used up last
}

type storedLease struct {
	ID    string    `json:"id"`
	Mount string    `json:"mount,omitempty"` // of the engine, for a certificate
	Ends  time.Time `json:"ends"`            // by itself
}

// storeLease notes on disk that Vault holds a lease for us. A disk that cannot take
// it is no reason to refuse the credential: the lease ends by itself.
func (b *Broker) storeLease(l *lease) {
	b.mu.Lock()
	b.stored[l.id] = storedLease{ID: l.id, Mount: l.mount, Ends: l.ends.time()}
	b.unlockAndNotify()
	b.saveState()
}

// saveState replaces the state file.
func (b *Broker) saveState() {
	if b.cfg.StateFile == "" {
		return
	}
	b.saving.Lock()
	defer b.saving.Unlock()
	b.mu.RLock()
	kept := state{Leases: make([]storedLease, 0, len(b.stored)), Spent: b.usedWrap}
	for _, l := range b.stored {
		kept.Leases = append(kept.Leases, l)
	}
	b.mu.RUnlock()
	err := writeState(b.cfg.StateFile, kept)
	b.mu.Lock()
	defer b.unlockAndNotify()
	if err != nil && b.stats.stateErr == nil {
		b.warn("write state file: leases left by a killed sidecar will end by themselves only", zap.Error(err))
	}
	b.stats.stateErr = err
}

func writeState(path string, kept state) error {
	slices.SortFunc(kept.Leases, func(x, y storedLease) int { return strings.Compare(x.ID, y.ID) })
	text, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = file.Write(append(text, '\n'))
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}

// loadState queues what an earlier sidecar has left to be revoked.
func (b *Broker) loadState() error {
	if b.cfg.StateFile == "" {
		return nil
	}
	text, err := os.ReadFile(b.cfg.StateFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read state file: %w", err)
	}
	var kept state
	if err := json.Unmarshal(text, &kept); err != nil {
		return fmt.Errorf("read state file: %s is damaged; remove it to give up revoking the leases it names", b.cfg.StateFile)
	}
	b.mu.Lock()
	defer b.unlockAndNotify()
	b.usedWrap = kept.Spent
	now := b.now()
	for _, l := range kept.Leases {
		b.stored[l.ID] = l
		end := never()
		if !l.Ends.IsZero() {
			end = now.add(time.Duration(l.Ends.UnixNano() - now.wall))
		}
		b.queue(&revocation{id: l.ID, mount: l.Mount, ends: end, due: now, urgent: true})
	}
	return nil
}
