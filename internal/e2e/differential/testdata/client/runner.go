package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// job is one run of one client.
type job struct {
	ID      string
	Args    []string
	Env     []string      // added
	Direct  bool          // without the variables that name a proxy
	Kind    string        // how its outcome is read: "fields", "curl" or "tool"
	Timeout time.Duration // it is ended then
}

// outcome is what a client saw.
type outcome struct {
	ID     string
	Fields map[string]string
	Stderr string // and what else explains it
}

// serve runs each job of in as it comes, and writes its outcome to out.
func serve(in io.Reader, out io.Writer) error {
	var (
		all sync.WaitGroup
		mu  sync.Mutex
	)
	encode := json.NewEncoder(out)
	lines := json.NewDecoder(bufio.NewReader(in))
	for {
		var j job
		if err := lines.Decode(&j); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		all.Go(func() {
			o := run(j)
			mu.Lock()
			defer mu.Unlock()
			_ = encode.Encode(o) // the reader finds that it is missing
		})
	}
	all.Wait()
	return nil
}

func run(j job) outcome {
	o := outcome{ID: j.ID, Fields: map[string]string{}}
	dir, err := os.MkdirTemp("", "job-")
	if err != nil {
		o.Stderr = err.Error()
		return o
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), j.Timeout)
	defer cancel()
	args := j.Args
	if j.Kind == "curl" {
		args = append(args, "-sS", "-D", filepath.Join(dir, "head"), "-o", filepath.Join(dir, "body"), "-w", `%{json}`)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, environment(j, dir)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	begun := time.Now()
	err = cmd.Run()
	o.Stderr = last(stderr.String(), 3000)
	if cmd.ProcessState == nil {
		o.Fields["error"] = fmt.Sprint("does not start: ", err)
		return o
	}
	exit := cmd.ProcessState.ExitCode()
	o.Fields["_exit"] = strconv.Itoa(exit)
	o.Fields["_run"] = time.Since(begun).Round(time.Millisecond).String()
	switch {
	case ctx.Err() != nil:
		o.Fields["error"] = "hangs"
	case j.Kind == "curl":
		readCurl(o.Fields, dir, stdout.Bytes(), exit)
	case j.Kind == "fields":
		readFields(&o, stdout.Bytes(), exit)
	default:
		readTool(&o, stdout.Bytes(), exit, time.Since(begun))
	}
	return o
}

func last(text string, n int) string { return text[max(0, len(text)-n):] }

// environment is the runner's own, less the proxy's variables for a transparent
// job, with a folder of the job's own as home.
func environment(j job, dir string) []string {
	var env []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		switch strings.ToUpper(name) {
		case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NODE_USE_ENV_PROXY":
			if j.Direct {
				continue
			}
		}
		env = append(env, entry)
	}
	return append(append(env, "HOME="+dir, "TMPDIR="+dir), j.Env...)
}

// readFields takes what a client printed: the last line.
func readFields(o *outcome, stdout []byte, exit int) {
	lines := bytes.Split(bytes.TrimSpace(stdout), []byte("\n"))
	fields := map[string]string{}
	if err := json.Unmarshal(lines[len(lines)-1], &fields); err != nil {
		o.Fields["error"] = fmt.Sprintf("exit %d without a report", exit)
		o.Stderr += last(string(stdout), 1000)
		return
	}
	merge(o.Fields, fields)
}

// readTool compares a program by its exit code and what it printed.
func readTool(o *outcome, stdout []byte, exit int, took time.Duration) {
	o.Fields["exit"] = strconv.Itoa(exit)
	o.Fields["body"] = digest(stdout)
	o.Fields["_out"] = last(string(stdout), 600)
	o.Fields["total seconds"] = strconv.FormatFloat(took.Seconds(), 'f', 3, 64)
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return fmt.Sprintf("%d bytes %s", len(data), hex.EncodeToString(sum[:8]))
}

// readCurl takes what curl wrote: heads, body, and its own account.
func readCurl(fields map[string]string, dir string, account []byte, exit int) {
	var a struct {
		Code      int     `json:"http_code"`
		Version   string  `json:"http_version"`
		Head      float64 `json:"time_starttransfer"`
		Total     float64 `json:"time_total"`
		Redirects int     `json:"num_redirects"`
		Error     string  `json:"errormsg"`
	}
	if err := json.Unmarshal(account, &a); err != nil {
		fields["error"] = fmt.Sprintf("curl %d without an account", exit)
		return
	}
	fields["status"] = strconv.Itoa(a.Code)
	fields["redirects"] = strconv.Itoa(a.Redirects)
	fields["_version"] = a.Version
	fields["_error"] = a.Error
	fields["error"] = map[int]string{0: "", 7: "refused", 16: "protocol", 18: "eof", 28: "timeout", 35: "tls", 52: "eof", 55: "reset", 56: curlReceive(a.Error), 60: "tls", 92: "stream " + streamCode(a.Error), 95: "protocol"}[exit]
	if exit != 0 && fields["error"] == "" {
		fields["error"] = fmt.Sprintf("curl %d", exit)
	}
	if a.Code != 0 {
		fields["head seconds"] = strconv.FormatFloat(a.Head, 'f', 3, 64)
	}
	fields["total seconds"] = strconv.FormatFloat(a.Total, 'f', 3, 64)
	body, _ := os.ReadFile(filepath.Join(dir, "body")) // it makes none without a body
	if bytes.HasPrefix(body, []byte("HTTP/")) {
		body = nil // curl -I writes the head there too
	}
	fields["body"] = digest(body)
	fields["_body"] = text(body)
	head, _ := os.ReadFile(filepath.Join(dir, "head")) // as above
	readHeads(fields, string(head))
}

func curlReceive(message string) string {
	if strings.Contains(strings.ToLower(message), "eof") || strings.Contains(message, "unexpectedly") {
		return "eof"
	}
	return "reset"
}

// streamCode finds the code that a stream of HTTP/2 was reset with.
func streamCode(message string) string {
	_, rest, _ := strings.Cut(message, "(err ")
	code, _, _ := strings.Cut(rest, ")")
	return code
}

// text shows what can be printed of a body.
func text(body []byte) string {
	return strconv.QuoteToASCII(string(body[:min(len(body), 400)]))
}

// readHeads takes what curl dumps: heads of interim answers, of a CONNECT's, the
// last answer's, and then its trailers.
func readHeads(fields map[string]string, dump string) {
	var interim []string
	dump = strings.ReplaceAll(dump, "\r\n", "\n")
	dump = strings.ReplaceAll(strings.ReplaceAll(dump, "\n ", " "), "\n\t", " ") // folded lines (RFC 9112, 5.2)
	blocks := strings.Split(dump, "\n\n")
	for _, block := range blocks {
		status, headers, _ := strings.Cut(block, "\n")
		prefix := "header "
		switch {
		case block == "" || strings.Contains(strings.ToLower(status), "connection established"):
			continue
		case !strings.HasPrefix(status, "HTTP/"):
			prefix, headers = "trailer ", block
		case strings.HasPrefix(status[min(len(status), strings.IndexByte(status, ' ')+1):], "1"):
			words := strings.Fields(status)
			interim = append(interim, words[1])
			prefix = "interim " + words[1] + " "
		default:
			for name := range fields {
				if strings.HasPrefix(name, "header ") {
					delete(fields, name) // of an answer before this one
				}
			}
		}
		for line := range strings.Lines(headers) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
			if name == "" {
				continue
			}
			key := prefix + strings.ToLower(name)
			if old, found := fields[key]; found {
				value = old + " | " + strings.TrimSpace(value)
			}
			fields[key] = strings.TrimSpace(value)
		}
	}
	fields["interim"] = strings.Join(interim, " ")
}
