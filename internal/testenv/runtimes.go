package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// BuildGoPlugin builds the host and plugin of HashiCorp's go-plugin that the
// end-to-end tests run, if the cache does not have it, and returns the path of
// the program. Progress, which may be nil, gets a line when the build begins.
func BuildGoPlugin(ctx context.Context, progress io.Writer) (string, error) {
	return buildModule(ctx, progress, "goplugin", "building the go-plugin of the tests (once, about a minute)", "internal", "e2e", "testdata", "goplugin")
}

// buildModule builds the nested module in a folder of the repository into the
// cache, under name and a hash of its sources.
func buildModule(ctx context.Context, progress io.Writer, name, announcement string, folder ...string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	source := filepath.Join(append([]string{root}, folder...)...)
	sum, err := hashSources(source)
	if err != nil {
		return "", fmt.Errorf("hash the sources of %s: %w", name, err)
	}
	return cached(name+"-"+sum, func(path string) error {
		if progress != nil {
			fmt.Fprintln(progress, announcement)
		}
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
		return nil
	})
}

// InstallNode installs the npm packages of the end-to-end tests, exactly those
// of their package-lock.json and without running scripts of theirs, if the
// cache does not have them. It returns the folder that holds node_modules.
// Progress, which may be nil, gets a line when the installation begins.
func InstallNode(ctx context.Context, progress io.Writer) (string, error) {
	return installNode(ctx, progress, "internal", "e2e", "testdata", "npm")
}

// InstallNodeClients installs the npm packages of the differential tests, as
// InstallNode does.
func InstallNodeClients(ctx context.Context, progress io.Writer) (string, error) {
	return installNode(ctx, progress, "internal", "e2e", "differential", "testdata", "npm")
}

// InstallNodeDatabaseClients installs the npm packages of the tests of databases, as
// InstallNode does.
func InstallNodeDatabaseClients(ctx context.Context, progress io.Writer) (string, error) {
	return installNode(ctx, progress, "internal", "e2e", "databases", "testdata", "npm")
}

func installNode(ctx context.Context, progress io.Writer, folder ...string) (string, error) {
	source, sum, err := listOfPackages(folder)
	if err != nil {
		return "", fmt.Errorf("hash the list of npm packages: %w", err)
	}
	return cached("npm-"+sum, func(path string) error {
		if progress != nil {
			fmt.Fprintln(progress, "installing the npm packages of the tests (once)")
		}
		// An installation that was killed may have left something.
		if err := errors.Join(os.RemoveAll(path), os.CopyFS(path, os.DirFS(source))); err != nil {
			return fmt.Errorf("copy the list of npm packages: %w", err)
		}
		cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
		cmd.Dir = path
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("install npm packages: %w\n%s", err, out)
		}
		return nil
	})
}

// SystemPython is the Python that the tests run as a plugin: the system's, since
// one in somebody's home is no plugin's.
const SystemPython = "/usr/bin/python3"

// InstallPythonClients installs the Python packages of the differential tests for
// SystemPython, exactly those of their requirements.txt, whose hashes pip compares,
// if the cache does not have them. It returns the folder for PYTHONPATH.
// Progress, which may be nil, gets a line when the installation begins.
func InstallPythonClients(ctx context.Context, progress io.Writer) (string, error) {
	return installPython(ctx, progress, "internal", "e2e", "differential", "testdata", "pip")
}

// InstallPythonDatabaseClients installs the Python packages of the tests of
// databases, as InstallPythonClients does.
func InstallPythonDatabaseClients(ctx context.Context, progress io.Writer) (string, error) {
	return installPython(ctx, progress, "internal", "e2e", "databases", "testdata", "pip")
}

func installPython(ctx context.Context, progress io.Writer, folder ...string) (string, error) {
	version, err := exec.CommandContext(ctx, SystemPython, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", SystemPython, err)
	}
	return installWheels(ctx, progress, strings.TrimSpace(string(version)), folder...)
}

// installWheels installs the wheels of a requirements.txt for a release of Python.
func installWheels(ctx context.Context, progress io.Writer, release string, folder ...string) (string, error) {
	source, sum, err := listOfPackages(folder)
	if err != nil {
		return "", fmt.Errorf("hash the list of Python packages: %w", err)
	}
	return cached("python"+release+"-"+sum, func(path string) error {
		if progress != nil {
			fmt.Fprintln(progress, "installing the Python packages of the tests (once)")
		}
		command, err := pip()
		if err != nil {
			return err
		}
		if err := os.RemoveAll(path); err != nil { // an installation that was killed may have left something
			return err
		}
		args := append(command[1:], "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes",
			"--only-binary=:all:", "--python-version", release, "--target", path, "--requirement", filepath.Join(source, "requirements.txt"))
		if out, err := exec.CommandContext(ctx, command[0], args...).CombinedOutput(); err != nil {
			return fmt.Errorf("install Python packages: %w\n%s", err, out)
		}
		return nil
	})
}

// InstallJavaDatabaseClients installs the jars of the tests of databases by Maven,
// exactly those of their sha256sums, if the cache does not have them. It returns
// the folder that holds them. Progress, which may be nil, gets a line when the
// installation begins.
func InstallJavaDatabaseClients(ctx context.Context, progress io.Writer) (string, error) {
	source, sum, err := listOfPackages([]string{"internal", "e2e", "databases", "testdata", "maven"})
	if err != nil {
		return "", fmt.Errorf("hash the list of Maven packages: %w", err)
	}
	return cached("maven-"+sum, func(path string) error {
		if progress != nil {
			fmt.Fprintln(progress, "installing the Maven packages of the tests (once)")
		}
		// Maven's own plugins come from the same repository and are not kept.
		repository, err := os.MkdirTemp("", "chaperone-maven-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(repository)
		if err := os.RemoveAll(path); err != nil { // an installation that was killed may have left something
			return err
		}
		out, err := exec.CommandContext(ctx, "mvn", "-q", "-B", "--strict-checksums", "-f", filepath.Join(source, "pom.xml"),
			"-Dmaven.repo.local="+repository, "dependency:copy-dependencies", "-DoutputDirectory="+path).CombinedOutput()
		if err != nil {
			return fmt.Errorf("install Maven packages: %w\n%s", err, out)
		}
		check := exec.CommandContext(ctx, "sha256sum", "--check", "--strict", "--quiet", filepath.Join(source, "sha256sums"))
		check.Dir = path
		if out, err := check.CombinedOutput(); err != nil {
			return fmt.Errorf("compare the Maven packages with their sums: %w\n%s", err, out)
		}
		return nil
	})
}

// listOfPackages returns a folder of the repository and a hash of its files.
func listOfPackages(folder []string) (source, sum string, err error) {
	root, err := Root()
	if err != nil {
		return "", "", err
	}
	source = filepath.Join(append([]string{root}, folder...)...)
	sum, err = hashSources(source)
	return source, sum, err
}
