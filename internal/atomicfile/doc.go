// Package atomicfile replaces files so that a crash or a power cut leaves the old
// content or the new content, and never neither.
//
// [Write] writes a temporary file in the same directory, syncs it, renames it over
// the path and syncs the directory. After it returned nil the new content survives a
// power cut. Without the first sync a file system may store the new name before the
// data, which leaves an empty file; without the second the old name may come back
// (fsync(2), rename(2)). [Create] does the same for a path that must not exist, and
// [Read] reads such a file if no other user can have written it.
//
// A program that appends to a file instead calls Sync on it after each record, and
// [SyncDir] once after the file was made.
//
// [FS] is the part of the file system that this needs. Tests replace it by
// [github.com/chaperone-proxy/chaperone/internal/atomicfile/powercut], which loses
// what was not synced.
//
// The package imports the standard library only.
package atomicfile
