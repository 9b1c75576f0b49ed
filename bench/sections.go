package main

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// scene is one measurement, which prints a table.
type scene struct {
	name string
	play func(context.Context, *env) (*table, error)
}

// section is a question that scenes answer, and a heading of README.md.
type section struct {
	heading string
	scenes  []scene
}

// sections returns the scenes in the order of README.md.
func sections() []section {
	return []section{
		{"Start", []scene{{"start", startScene}}},
		{"Idle", []scene{{"idle", idleScene}}},
		{"A decision", []scene{{"decide", decideScene}, {"admit", admitScene}, {"credential", credentialScene}, {"engines", enginesScene}}},
		{"A check", []scene{{"extauthz", extauthzScene}, {"growth", growthScene}}},
		{"The proxy", []scene{{"proxy", proxyScene}, {"scrub", scrubScene}}},
		{"The kernel", []scene{{"kernel-calls", callsScene}, {"kernel-net", netScene}, {"kernel-limits", limitsScene}, {"kernel-mediation", mediationScene}}},
		{"Revoke", []scene{{"revoke", revokeScene}, {"kernel-halt", haltScene}}},
		{"Envoy", []scene{{"envoy", envoyScene}}},
		{"Databases", []scene{
			{"kernel-databases-postgres", postgresScene},
			{"kernel-databases-login", loginScene},
			{"kernel-databases-redis", redisScene},
			{"kernel-databases-sessions", sessionsScene},
		}},
		{"Policy", []scene{{"policy", policyScene}}},
	}
}

// play plays the scenes of a section that were asked for and prints their tables below
// the section's heading, and below those the text of another machine's run.
func (s section) play(ctx context.Context, w *env, o options, machine string, other map[string]string) error {
	began := false
	for _, scene := range s.scenes {
		if !wanted(scene.name, o.only) || scene.name == "growth" && o.checks == 0 {
			continue
		}
		if !began {
			fmt.Printf("## %s\n\n### %s\n\n", s.heading, machine)
			began = true
		}
		if strings.HasPrefix(scene.name, "kernel") && os.Geteuid() != 0 {
			fmt.Printf("%s: left out, it needs root\n\n", scene.name)
			continue
		}
		t, err := scene.play(ctx, w)
		if err != nil {
			return fmt.Errorf("%s: %w", scene.name, err)
		}
		t.print(os.Stdout)
	}
	if text := other[s.heading]; began && text != "" {
		fmt.Print(text)
	}
	return nil
}

// readSections returns the text below each heading of an earlier run's output, by heading.
func readSections(path string) (map[string]string, error) {
	texts := map[string]string{}
	if path == "" {
		return texts, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the other machine's run: %w", err)
	}
	for part := range strings.SplitSeq("\n"+string(data), "\n## ") {
		heading, text, _ := strings.Cut(part, "\n")
		texts[heading] = strings.TrimSpace(text) + "\n\n"
	}
	return texts, nil
}
