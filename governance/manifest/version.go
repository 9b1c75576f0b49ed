package manifest

import (
	"fmt"

	"github.com/Masterminds/semver/v3"
)

// Step is how far a version is from an earlier one, by semver.org 2.0.0.
type Step string

// The steps, from the smallest to the largest.
const (
	// StepPatch is a higher version of the same major and minor.
	StepPatch Step = "patch"
	StepMinor Step = "minor"
	StepMajor Step = "major"
)

// rank orders steps; an unknown one is below all.
func (s Step) rank() int {
	switch s {
	case StepPatch:
		return 1
	case StepMinor:
		return 2
	case StepMajor:
		return 3
	}
	return 0
}

// maxVersion bounds the length of a version.
const maxVersion = 128

// parseVersion reads a version of semver.org 2.0.0, with all three numbers and without a v in
// front.
func parseVersion(text string) (*semver.Version, error) {
	if len(text) > maxVersion {
		return nil, fmt.Errorf("%s is longer than %d characters; write MAJOR.MINOR.PATCH, as in 2.4.1", quote(text), maxVersion)
	}
	v, err := semver.StrictNewVersion(text)
	if err != nil || v.String() != text {
		return nil, fmt.Errorf("%s is not a semantic version; write MAJOR.MINOR.PATCH, as in 2.4.1", quote(text))
	}
	return v, nil
}

// IsVersion reports whether a text is a version of semver.org 2.0.0, without a v in front.
func IsVersion(text string) bool {
	_, err := parseVersion(text)
	return err == nil
}

// CompareVersions orders two semantic versions, as semver.org 2.0.0 does: below 0, 0 or above 0.
// A text that is no version is an error.
func CompareVersions(a, b string) (int, error) {
	va, err := parseVersion(a)
	if err != nil {
		return 0, err
	}
	vb, err := parseVersion(b)
	if err != nil {
		return 0, err
	}
	return va.Compare(vb), nil
}

// stepBetween returns the step from one version to a later one.
func stepBetween(from, to *semver.Version) (Step, error) {
	switch {
	case !to.GreaterThan(from):
		return "", fmt.Errorf("version %s is not after %s; raise it", to, from)
	case to.Major() != from.Major():
		return StepMajor, nil
	case to.Minor() != from.Minor():
		return StepMinor, nil
	}
	return StepPatch, nil
}

// next returns the version that is one step after another.
func (s Step) next(from *semver.Version) string {
	switch s {
	case StepMajor:
		return from.IncMajor().String()
	case StepMinor:
		return from.IncMinor().String()
	case StepPatch:
	}
	return from.IncPatch().String()
}

// checkRange reads a range of versions, as in ">=1.4.0 <2.0.0".
func checkRange(text string) error {
	if len(text) > maxVersion {
		return fmt.Errorf("is longer than %d characters", maxVersion)
	}
	if _, err := semver.NewConstraint(text); err != nil {
		return fmt.Errorf(`%s is not a range of versions; write one as in ">=1.4.0 <2.0.0"`, quote(text))
	}
	return nil
}
