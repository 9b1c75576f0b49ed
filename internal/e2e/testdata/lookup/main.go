// Command lookup does what Go plugins do, and prints "ok NAME" or "broken
// NAME: WHY" for each. The tests build it with cgo and without.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	check("user.Current", currentUser)
	check("home", home)
	check("unix socket", unixSocket)
	check("child", child)
	check("localhost", func() (string, error) {
		found, err := net.LookupHost("localhost")
		return fmt.Sprint(slices.Contains(found, "127.0.0.1")), err
	})
	if !slices.Contains(os.Args[1:], "network") {
		return
	}
	check("look-up", lookUp)
	check("https", func() (string, error) { return "", hello(http.DefaultClient, os.Getenv("E2E_HTTPS")) })
	check("https without the proxy's variables", func() (string, error) {
		return "", hello(&http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true}}, os.Getenv("E2E_HTTPS"))
	})
	check("tcp6", func() (string, error) { return "", dial("tcp6") })
	check("tcp4", func() (string, error) { return "", dial("tcp4") })
}

func check(name string, f func() (string, error)) {
	type outcome struct {
		value string
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		value, err := f()
		done <- outcome{value, err}
	}()
	select {
	case o := <-done:
		switch {
		case o.err != nil:
			fmt.Printf("broken %s: %s\n", name, strings.ReplaceAll(o.err.Error(), "\n", " "))
		case o.value != "":
			fmt.Printf("ok %s: %s\n", name, o.value)
		default:
			fmt.Printf("ok %s\n", name)
		}
	case <-time.After(25 * time.Second):
		fmt.Printf("broken %s: 25 s are over\n", name)
	}
}

func currentUser() (string, error) {
	u, err := user.Current()
	if err != nil {
		return "", err
	}
	if u.Username != os.Getenv("USER") || u.HomeDir != os.Getenv("HOME") {
		return "", fmt.Errorf("it is %s of %s", u.Username, u.HomeDir)
	}
	byID, err := user.LookupId(fmt.Sprint(os.Getuid()))
	if err != nil {
		return "", err
	}
	if _, err := user.LookupGroupId(byID.Gid); err != nil {
		return "", err
	}
	return "", nil
}

func home() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "e2e", "probe")
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", err
	}
	return "", os.RemoveAll(filepath.Dir(path))
}

func unixSocket() (string, error) {
	dir, err := os.MkdirTemp("", "g")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return "", err
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = io.WriteString(conn, "x")
			_ = conn.Close()
		}
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		return "", err
	}
	got, err := io.ReadAll(conn)
	return string(got), err
}

func child() (string, error) {
	out, err := exec.Command("sh", "-c", "echo $0 child", "a").Output()
	return strings.TrimSpace(string(out)), err
}

func lookUp() (string, error) {
	if _, err := net.LookupHost(os.Getenv("E2E_HOST")); err != nil {
		return "", err
	}
	var missing *net.DNSError
	if _, err := net.LookupHost("no-such-name.test.example"); !errors.As(err, &missing) || !missing.IsNotFound {
		return "", fmt.Errorf("a name that is not there: %v", err)
	}
	return "", nil
}

func hello(client *http.Client, address string) error {
	answer, err := client.Get(address)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && string(text) != "hello GET\n" {
		err = fmt.Errorf("it answered %q", text)
	}
	return err
}

func dial(network string) error {
	u, err := url.Parse(os.Getenv("E2E_HTTP"))
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout(network, u.Host, 20*time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}
