package vault

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/chaperone-proxy/chaperone/internal/testenv"
)

// ahead is a clock that tests move.
type ahead struct{ by atomic.Int64 }

func (a *ahead) now() time.Time { return time.Now().Add(time.Duration(a.by.Load())) }

func (a *ahead) move(d time.Duration) { a.by.Add(int64(d)) }

// A login that Vault has refused is not tried again until its files change: a
// handful of refused logins lock the role for every host that uses it.
func TestRefusedLoginIsNotRepeated(t *testing.T) {
	t.Parallel()
	v := weatherVault(t, testenv.VaultConfig{})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast, TokenTTL: time.Hour})
	good := testenv.MustGet(os.ReadFile(auth.SecretIDFile))(t)
	testenv.Must(t, os.WriteFile(auth.SecretIDFile, []byte("wrong"), 0o600))
	f := newFaults(t, v)
	core, logs := observer.New(zap.WarnLevel)
	var clock ahead
	b, _ := run(t, Config{Address: f.address, Auth: auth, Logger: zap.New(core), Now: clock.now})
	logins := func() int64 { return f.count("auth/approle/login") }

	until(t, "the login was refused", func() bool { return b.Status().LoginErr != "" })
	for range 300 { // a waiting start asks all the time
		if err := b.Login(t.Context()); err == nil || !Permanent(err) {
			t.Fatalf("login with a wrong secret id: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	clock.move(4 * time.Minute)
	time.Sleep(50 * time.Millisecond)
	_ = b.Login(t.Context())
	if n := logins(); n != 1 {
		t.Errorf("%d logins with the same wrong secret id", n)
	}
	if text := b.Status().LoginErr; !strings.Contains(text, "invalid role or secret ID") || !strings.Contains(text, "lock the role") {
		t.Errorf("got status %q", text)
	}
	if n := logs.FilterMessage("vault login failed").Len(); n != 1 {
		t.Errorf("%d log lines", n)
	}

	// The cause stays when a later try only meets the lock.
	f.breaks("auth/approle/login", answer(403, `{"errors":["permission denied"]}`))
	clock.move(2 * time.Minute)
	until(t, "it was tried once more", func() bool { _ = b.Login(t.Context()); return logins() == 2 })
	until(t, "the cause is kept", func() bool {
		text := b.Status().LoginErr
		return strings.Contains(text, "invalid role or secret ID") && strings.Contains(text, "may have locked the role")
	})
	f.mend()
	clock.move(14 * time.Minute) // Vault forgets refused logins after 15 minutes without another
	time.Sleep(50 * time.Millisecond)
	if _ = b.Login(t.Context()); logins() != 2 {
		t.Errorf("%d logins in 20 minutes", logins())
	}

	// As an editor does: cut off, then written in two steps.
	testenv.Must(t, os.Truncate(auth.SecretIDFile, 0))
	time.Sleep(1500 * time.Millisecond)
	if n := logins(); n != 2 {
		t.Errorf("%d logins while the file was empty", n)
	}
	testenv.Must(t, os.WriteFile(auth.SecretIDFile, good, 0o600))
	clock.move(30 * time.Second)
	until(t, "it logged in with the new secret id", func() bool { return b.Status().LoggedIn })
	if n := logins(); n != 3 {
		t.Errorf("%d logins until the right secret id", n)
	}
}

// Files are replaced in many ways. Each is noticed within seconds.
func TestRefusedLoginIsTriedWithNewFiles(t *testing.T) {
	t.Parallel()
	v := weatherVault(t, testenv.VaultConfig{})
	right := approle(t, v, "weather", testenv.AppRole{Policy: readForecast, TokenTTL: time.Hour})
	secretID := testenv.MustGet(os.ReadFile(right.SecretIDFile))(t)
	for name, replace := range map[string]func(t *testing.T, path string){
		"renamed over": func(t *testing.T, path string) {
			testenv.Must(t, os.WriteFile(path+".new", secretID, 0o600))
			testenv.Must(t, os.Rename(path+".new", path))
		},
		"removed, then written": func(t *testing.T, path string) {
			testenv.Must(t, os.Remove(path))
			time.Sleep(1200 * time.Millisecond)
			testenv.Must(t, os.WriteFile(path, secretID, 0o600))
		},
		"a folder's link moved, as Kubernetes does": func(t *testing.T, path string) {
			folder := filepath.Dir(path)
			testenv.Must(t, os.Mkdir(filepath.Join(folder, "..2"), 0o700))
			testenv.Must(t, os.WriteFile(filepath.Join(folder, "..2", "secret-id"), secretID, 0o600))
			testenv.Must(t, os.Symlink("..2", filepath.Join(folder, "..tmp")))
			testenv.Must(t, os.Rename(filepath.Join(folder, "..tmp"), filepath.Join(folder, "..data")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			testenv.Must(t, os.Mkdir(filepath.Join(folder, "..1"), 0o700))
			testenv.Must(t, os.WriteFile(filepath.Join(folder, "..1", "secret-id"), []byte("wrong"), 0o600))
			testenv.Must(t, os.Symlink("..1", filepath.Join(folder, "..data")))
			testenv.Must(t, os.Symlink("..data/secret-id", filepath.Join(folder, "secret-id")))
			auth := right
			auth.SecretIDFile = filepath.Join(folder, "secret-id")
			f := newFaults(t, v)
			b, _ := run(t, Config{Address: f.address, Auth: auth})
			until(t, "the login was refused", func() bool { return b.Status().LoginErr != "" })
			replace(t, auth.SecretIDFile)
			until(t, "it logged in", func() bool { return b.Status().LoggedIn })
			if n := f.count("auth/approle/login"); n != 2 {
				t.Errorf("%d logins", n)
			}
		})
	}
}

// A wrong secret id written every second must not lock the role, and an operator
// can ask for a try.
func TestChangedFilesAreTriedLessAndLess(t *testing.T) {
	t.Parallel()
	r := &refusal{}
	var waits []time.Duration
	for r.count = 1; r.count <= 6; r.count++ {
		waits = append(waits, r.changedWait())
	}
	var sum time.Duration
	for _, w := range waits[:4] {
		sum += w
	}
	if waits[0] > 5*time.Second || waits[5] != refusedRetry || sum < 2*time.Minute {
		t.Errorf("changed files are tried after %v", waits)
	}

	v := weatherVault(t, testenv.VaultConfig{})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast, TokenTTL: time.Hour})
	f := newFaults(t, v)
	f.breaks("auth/approle/login", first(1, 400, `{"errors":["source address unauthorized"]}`))
	b, _ := run(t, Config{Address: f.address, Auth: auth})
	until(t, "the login was refused", func() bool { return b.Status().LoginErr != "" })
	b.TryLogin()
	until(t, "it logged in", func() bool { return b.Status().LoggedIn })
}

// Logins that fail by Vault's state, or the network, are tried again.
func TestOtherFailuresOfALoginAreRepeated(t *testing.T) {
	t.Parallel()
	v := weatherVault(t, testenv.VaultConfig{})
	auth := approle(t, v, "weather", testenv.AppRole{Policy: readForecast, TokenTTL: time.Hour})
	type handler = func(http.ResponseWriter, *http.Request, func() *httptest.ResponseRecorder)
	for name, handle := range map[string]handler{
		"404": first(2, 404, `{"errors":["no handler for route"]}`),
		"412": first(4, 412, `{"errors":["required index state not present"]}`),
		"429": first(2, 429, `{"errors":["rate limit quota exceeded"]}`),
		"500": first(2, 500, `{"errors":["internal error"]}`),
		"502": first(2, 502, `<html>`),
		"503": first(2, 503, `{"errors":["Vault is sealed"]}`),
		"none": func() handler {
			var n atomic.Int64
			return func(w http.ResponseWriter, _ *http.Request, forward func() *httptest.ResponseRecorder) {
				if n.Add(1) <= 2 {
					panic(http.ErrAbortHandler)
				}
				replay(w, forward())
			}
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFaults(t, v)
			f.breaks("auth/approle/login", handle)
			b, _ := run(t, Config{Address: f.address, Auth: auth})
			until(t, "it logged in", func() bool { return b.Status().LoggedIn })
		})
	}
}
