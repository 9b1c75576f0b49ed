package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/chaperone-proxy/chaperone/audit"
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/admin"
)

const (
	bundleRecords  = 1000             // audit records in a support bundle
	bundlePatience = 10 * time.Second // for a sidecar to answer
	bundlePart     = 16 << 20         // bytes of one file of it
)

// redacted stands for a value that may be a secret.
const redacted = "(redacted)"

func (c *cli) supportBundleCommand() *cobra.Command {
	var file string
	cmd := c.withConfig(&cobra.Command{
		Use:   "support-bundle --config FILE [--file BUNDLE]",
		Short: "Collect the state of a sidecar and its host in one archive, without secrets",
		Long: "Collect the state of a sidecar and its host in one archive (tar.gz): version, kernel,\n" +
			"doctor, configuration, status, usage, metrics and the last audit records. Values of process.env are\n" +
			"replaced, audit records have no path, query, detail or process, and no key, token or lease is read.\n" +
			"Review it before you send it: it names plugins, grants and hosts.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.config == "" {
				return usageError("support-bundle: --config is missing; name the Sidecar's file, as in --config sidecar.yaml")
			}
			if file == "" {
				file = "chaperone-" + time.Now().UTC().Format("20060102T150405Z") + ".tar.gz"
			}
			return c.writeBundle(cmd.Context(), file)
		},
	})
	cmd.Flags().StringVar(&file, "file", "", "the `BUNDLE` to write; by default one named after the time, in the working directory")
	return cmd
}

// writeBundle writes the archive, or nothing.
func (c *cli) writeBundle(ctx context.Context, file string) (err error) {
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write support bundle: %w", err)
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			err = fmt.Errorf("write support bundle: %w", errors.Join(err, os.Remove(file)))
		}
	}()
	packed := gzip.NewWriter(out)
	archive := tar.NewWriter(packed)
	for _, part := range c.bundleParts() {
		if err := addPart(ctx, archive, part); err != nil {
			return err
		}
	}
	if err := errors.Join(archive.Close(), packed.Close()); err != nil {
		return err
	}
	fmt.Fprintln(c.stdout, file)
	return nil
}

// bundlePartOf is one file of a support bundle.
type bundlePartOf struct {
	name string
	make func(context.Context) (any, error)
}

// bundleParts are the files of a support bundle. A part that cannot be collected is
// replaced by the reason: a bundle is wanted most when something is broken.
func (c *cli) bundleParts() []bundlePartOf {
	return []bundlePartOf{
		{"version.json", func(context.Context) (any, error) {
			return map[string]string{"version": buildVersion(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}, nil
		}},
		{"kernel.json", func(context.Context) (any, error) { return kernelFacts() }},
		{"doctor.json", func(ctx context.Context) (any, error) { return c.examined(ctx, false) }},
		{"configuration.json", func(context.Context) (any, error) { return bundledConfig(c.config) }},
		{"status.json", func(ctx context.Context) (any, error) {
			return askSidecar(c, func(client *admin.Client) (admin.Status, error) { return client.Status(ctx) })
		}},
		{"usage.json", func(ctx context.Context) (any, error) {
			return askSidecar(c, func(client *admin.Client) (admin.Usage, error) { return client.Usage(ctx) })
		}},
		{"metrics.txt", c.bundledMetrics},
		{"audit.json", c.bundledRecords},
	}
}

// addPart adds one file to the archive.
func addPart(ctx context.Context, archive *tar.Writer, part bundlePartOf) error {
	ctx, cancel := context.WithTimeout(ctx, bundlePatience)
	defer cancel()
	value, err := part.make(ctx)
	if err != nil {
		value = map[string]string{"missing": err.Error()}
	}
	data, ok := value.([]byte)
	if !ok {
		if data, err = json.MarshalIndent(value, "", "  "); err != nil {
			return fmt.Errorf("encode %s: %w", part.name, err)
		}
	}
	header := &tar.Header{Name: part.name, Mode: 0o600, Size: int64(len(data)), ModTime: time.Now(), Typeflag: tar.TypeReg}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = archive.Write(data)
	return err
}

// kernelFacts describes the kernel and the confinement of this process.
func kernelFacts() (map[string]string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("read kernel version: %w", err)
	}
	out := map[string]string{"release": unix.ByteSliceToString(name.Release[:]), "machine": unix.ByteSliceToString(name.Machine[:])}
	for _, file := range []string{"/proc/self/cgroup", "/proc/self/status", "/proc/sys/kernel/core_pattern", "/sys/kernel/security/lsm"} {
		text, err := os.ReadFile(file)
		if err != nil {
			out[file] = err.Error()
			continue
		}
		out[file] = string(text)
	}
	return out, nil
}

// bundledConfig is the configuration as it is read, with the values of the
// plugin's environment replaced. Grants and guardrails hold no secrets.
func bundledConfig(file string) (any, error) {
	cfg, err := loadConfig(file)
	if err != nil {
		return nil, err
	}
	spec := cfg.Sidecar
	spec.Process.Env = map[string]string{}
	for name := range cfg.Sidecar.Process.Env {
		spec.Process.Env[name] = redacted
	}
	return map[string]any{"sidecar": spec, "grants": cfg.Grants, "guardrails": cfg.Guardrails, "files": cfg.Files}, nil
}

func askSidecar[T any](c *cli, ask func(*admin.Client) (T, error)) (any, error) {
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	return ask(client)
}

// bundledMetrics reads the metrics of the sidecar, if it listens for that.
func (c *cli) bundledMetrics(ctx context.Context) (any, error) {
	spec, err := configs.LoadSidecar(c.config)
	if err != nil {
		return nil, err
	}
	if spec.Listen.Metrics.IsZero() {
		return nil, errors.New("spec.listen.metrics is closed")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+spec.Listen.Metrics.Addr+"/metrics", nil)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	defer response.Body.Close()
	return io.ReadAll(io.LimitReader(response.Body, bundlePart))
}

// bundledRecord is what a support bundle takes of an audit record: no path, no
// query, no detail, no process, and nothing else that a plugin or an upstream
// wrote but the host.
type bundledRecord struct {
	Time       time.Time `json:"time"`
	Kind       string    `json:"kind"`
	Door       string    `json:"door,omitempty"`
	Allowed    *bool     `json:"allowed,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Grant      string    `json:"grant,omitempty"`
	Rule       string    `json:"rule,omitempty"`
	Decision   string    `json:"decision,omitempty"`
	Generation uint64    `json:"generation,omitempty"`
	Scheme     string    `json:"scheme,omitempty"`
	Host       string    `json:"host,omitempty"`
	Port       uint16    `json:"port,omitempty"`
	Count      int       `json:"count,omitempty"`
}

func (c *cli) bundledRecords(ctx context.Context) (any, error) {
	file, _, err := c.auditLog(nil, "")
	if err != nil {
		return nil, err
	}
	out := []bundledRecord{}
	for e, err := range audit.Read(ctx, audit.Query{File: file, Last: bundleRecords}) {
		if err != nil {
			return nil, err
		}
		out = append(out, bundledRecord{
			Time: e.Time, Kind: e.Kind, Door: e.Door, Allowed: e.Allowed, Reason: e.Reason, Grant: e.Grant, Rule: e.Rule,
			Decision: e.Decision, Generation: e.Generation, Scheme: e.Scheme, Host: e.Host, Port: e.Port, Count: e.Count,
		})
	}
	return out, nil
}
