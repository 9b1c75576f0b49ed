package manifest

import (
	"github.com/chaperone-proxy/chaperone/configs"
	"github.com/chaperone-proxy/chaperone/internal/dsse"
)

// File is a manifest that was read, with the places of its fields.
type File struct {
	// Path names the file in messages.
	Path string
	// Plugin is the plugin's name.
	Plugin string
	Spec   configs.PluginManifest
	// Digest is that of the file.
	Digest string

	data   []byte
	places *configs.Locator
}

// Read reads a manifest strictly. name names the file, whose ending states whether it is YAML or JSON. The error is
// [configs.Errors], with places.
func Read(name string, data []byte) (*File, error) {
	object, places, err := configs.ParseLocated[configs.PluginManifest](name, data)
	if err != nil {
		return nil, err
	}
	return &File{Path: name, Plugin: object.Metadata.Name, Spec: object.Spec, Digest: dsse.Digest(data), data: data, places: places}, nil
}

// Position returns where a field is written, as in spec.permissions[0].id.
func (f *File) Position(field string) configs.Position { return f.places.Position(field) }

// permissionAt returns the permission that a field is of, -1 for another field.
func (f *File) permission(i int) string {
	if i < 0 || i >= len(f.Spec.Permissions) {
		return ""
	}
	return f.Spec.Permissions[i].ID
}
