package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe/images"
)

func imageCommand(g *global) *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "What machines boot: build, import, list, check and remove images", GroupID: "service"}
	build := imageBuildCommand(g)
	build.AddCommand(imageDebianCommand(g))
	c.AddCommand(build, imageImportCommand(g), imageManifestCommand(g), imageListCommand(g), imageShowCommand(g), imageVerifyCommand(g),
		imageRemoveCommand(g), imageGarbageCommand(g))
	return c
}

func imageListCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List the images of the server's store", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			list, err := get[[]api.ImageView](c.Context(), cl, "/images")
			if err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), list, func(w io.Writer) {
				row(w, "NAME", "TYPE", "ARCH", "SIZE", "SIGNED BY", "USED BY", "IMPORTED")
				for _, v := range list {
					m := v.Manifest
					row(w, m.Name, m.Type, m.Arch, sizeOf(v.Size), dash(v.SignedBy), dash(strings.Join(v.UsedBy, ", ")), v.At.Local().Format(time.DateTime))
				}
			})
		}}
}

func imageShowCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Show one image with its files and the YAML that names them", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			v, err := get[api.ImageView](c.Context(), cl, "/images/"+url.PathEscape(args[0]))
			if err != nil {
				return err
			}
			return g.showImage(c.OutOrStdout(), v)
		}}
}

func imageVerifyCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "verify NAME", Short: "Read every file of an image again and compare it with its digest and signature", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			var v api.ImageView
			if err := cl.call(c.Context(), http.MethodPost, "/images/"+url.PathEscape(args[0])+"/verify", nil, &v); err != nil {
				return err
			}
			if err := g.show(c.OutOrStdout(), v, func(w io.Writer) {
				row(w, "FILE", "STATE", "SIZE", "DIGEST")
				for _, p := range v.Checks {
					row(w, p.Role, p.State, sizeOf(p.Size), p.Digest)
				}
			}); err != nil {
				return err
			}
			for _, p := range v.Checks {
				if p.State != "ok" {
					return &fault.Error{Kind: fault.Unverified, Where: "image " + args[0], What: string(p.Role) + " is " + p.State,
						Evidence: p.Evidence, Next: "import it again"}
				}
			}
			return nil
		}}
}

func imageRemoveCommand(g *global) *cobra.Command {
	var old bool
	c := &cobra.Command{Use: "rm NAME", Short: "Remove an image that nothing names any more", Args: cobra.ExactArgs(1),
		Long: "Remove an image, and those of its files that no other image needs. It is refused while the topology, one of its\nrevisions or a boot under way names one of them.",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			var out api.Removed
			if err := cl.call(c.Context(), http.MethodDelete, fmt.Sprintf("/images/%s?oldRevisions=%t", url.PathEscape(args[0]), old), nil, &out); err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), out, func(w io.Writer) { fmt.Fprintf(w, "image %s is removed, with %d files\n", args[0], len(out.Files)) })
		}}
	c.Flags().BoolVar(&old, "old-revisions", false, "also when revisions before the present one name it")
	return c
}

func imageGarbageCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "garbage", Short: "List files of the store that no image, revision or boot names", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			list, err := get[[]images.Blob](c.Context(), cl, "/image-garbage")
			if err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), list, func(w io.Writer) {
				var sum int64
				for _, b := range list {
					row(w, b.Digest, sizeOf(b.Size))
					sum += b.Size
				}
				fmt.Fprintf(w, "%d files, %s\n", len(list), sizeOf(sum))
			})
		}}
}

// showImage prints what a person asks of an image, and the object to put into the topology.
func (g *global) showImage(w io.Writer, v api.ImageView) error {
	y, err := imageYAML(v.Manifest)
	if err != nil {
		return err
	}
	return g.show(w, v, func(w io.Writer) {
		for _, p := range v.Manifest.Files {
			row(w, p.Role, p.Digest, sizeOf(p.Size))
		}
		if v.SignedBy != "" {
			row(w, "signed by", v.SignedBy)
		}
		fmt.Fprintf(w, "---\n%s", y)
	})
}

// imageObject is the Image that names the files of a manifest.
func imageObject(m images.Manifest) topology.Image {
	spec := topology.ImageSpec{Type: topology.ImageType(m.Type), Arch: topology.Arch(m.Arch), Cmdline: m.Cmdline}
	for _, f := range m.Firmware {
		spec.Firmware = append(spec.Firmware, topology.Firmware(f))
	}
	for _, p := range m.Files {
		switch p.Role {
		case images.RoleKernel:
			spec.Kernel = topology.Digest(p.Digest)
		case images.RoleInitrd:
			spec.Initrds = append(spec.Initrds, topology.Digest(p.Digest))
		case images.RoleDisk, images.RoleISO, images.RoleEFI:
			spec.File = topology.Digest(p.Digest)
		}
	}
	return topology.Image{Kind: topology.KindImage, Meta: topology.Meta{Name: m.Name}, Spec: spec}
}

func imageYAML(m images.Manifest) ([]byte, error) {
	t := topology.New()
	t.Images[m.Name] = imageObject(m)
	return topology.MarshalObject(t, topology.KindImage, m.Name)
}

// sizeOf writes bytes for people.
func sizeOf(n int64) string {
	const kib = 1024
	switch {
	case n < kib:
		return fmt.Sprintf("%d B", n)
	case n < kib*kib:
		return fmt.Sprintf("%.1f KiB", float64(n)/kib)
	case n < kib*kib*kib:
		return fmt.Sprintf("%.1f MiB", float64(n)/(kib*kib))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(kib*kib*kib))
}
