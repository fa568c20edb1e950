package main

import (
	"context"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/revision"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/pxe/importer"
)

func imageImportCommand(g *global) *cobra.Command {
	var from imageFlags
	var signature, message string
	var apply bool
	c := &cobra.Command{Use: "import NAME [oci:REFERENCE]", Short: "Send an image to the server's store", Args: cobra.RangeArgs(1, 2),
		Long: `Send an image to the server's store: all of its files or nothing. The files are read here and streamed; a file may
be a path or an http(s) URL, whose checksum must then be given. It prints the digests and the Image object to put
into the topology; --apply puts it there.`,
		Example: `  rerack image import web --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0 quiet" --apply
  rerack image import rescue --iso debian-live.iso --sha256 5f6a...
  rerack image import firmware-update --disk https://example.org/fw.img --sha256 9c1e...
  rerack image import web oci:registry.example.org/images/web:v7`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			set, err := from.open(c.Context(), args)
			if err != nil {
				return err
			}
			defer set.close()
			if signature != "" {
				b, err := os.ReadFile(signature)
				if err != nil {
					return &fault.Error{Kind: fault.Invalid, What: "--signature", Err: err}
				}
				set.upload.Signature = string(b)
			}
			bar := newProgress(c.ErrOrStderr(), set.files)
			v, err := cl.importImage(c.Context(), set, bar)
			bar.end()
			if err != nil {
				return err
			}
			if err := g.showImage(c.OutOrStdout(), v); err != nil || !apply {
				return err
			}
			return cl.applyImage(c.Context(), v.Manifest, message, c.ErrOrStderr())
		}}
	from.register(c)
	c.Flags().StringVar(&signature, "signature", "", "minisign's signature of what rerack image manifest prints")
	c.Flags().BoolVar(&apply, "apply", false, "put the Image into the topology too, or change it there")
	c.Flags().StringVarP(&message, "message", "m", "", "why, for the record of --apply")
	return c
}

func imageManifestCommand(g *global) *cobra.Command {
	var from imageFlags
	c := &cobra.Command{Use: "manifest NAME [oci:REFERENCE]", Short: "Print the manifest of an image, which is what its maker signs; needs no server", Args: cobra.RangeArgs(1, 2),
		Example: "  rerack image manifest web --kernel vmlinuz --initrd initrd.img > web.json && minisign -Sm web.json",
		RunE: func(c *cobra.Command, args []string) error {
			set, err := from.open(c.Context(), args)
			if err != nil {
				return err
			}
			defer set.close()
			m := set.upload.Manifest
			for i, f := range set.files {
				if m.Files[i].Size == 0 { // a URL tells its size when it is read
					if m.Files[i].Digest, m.Files[i].Size, err = importer.Digest(c.Context(), f); err != nil {
						return err
					}
				}
			}
			_, err = c.OutOrStdout().Write(m.Text())
			return err
		}}
	from.register(c)
	return c
}

// importImage streams an image to the server. Nothing is kept there unless all of it arrives.
func (c *client) importImage(ctx context.Context, set *imageSet, bar *progress) (api.ImageView, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	form := multipart.NewWriter(w)
	failed := make(chan error, 1)
	go func() {
		err := set.write(ctx, form, bar)
		failed <- err
		_ = w.CloseWithError(err) // which never fails
	}()
	resp, err := c.request(ctx, http.MethodPut, "/images/"+url.PathEscape(set.upload.Manifest.Name), form.FormDataContentType(), r)
	_ = r.Close() // ends the writer, when the server has answered before it took all
	if own := <-failed; own != nil && !isClosed(own) {
		if err == nil {
			_ = resp.Body.Close()
		}
		return api.ImageView{}, own
	}
	var v api.ImageView
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	return v, decode(resp.Body, &v)
}

// applyImage puts the Image into the present topology, unless that changes meanwhile.
func (c *client) applyImage(ctx context.Context, m images.Manifest, message string, w io.Writer) error {
	now, err := get[struct {
		Revision revision.Head
		YAML     string
	}](ctx, c, "/topology")
	if err != nil {
		return err
	}
	t, err := topology.Load([]topology.File{{Name: "present topology", Data: []byte(now.YAML)}})
	if err != nil {
		return err
	}
	img := imageObject(m)
	if have, ok := t.Images[m.Name]; ok {
		img.Meta = have.Meta
	}
	t.Images[m.Name] = img
	y, err := topology.Marshal(t)
	if err != nil {
		return err
	}
	if message == "" {
		message = "import image " + m.Name
	}
	var out api.TopologyResult
	q := api.TopologyRequest{Files: []api.File{{Name: "image " + m.Name, Data: string(y)}}, Message: message, Expect: &now.Revision.Revision}
	if err := c.call(ctx, http.MethodPost, "/topology/apply", q, &out); err != nil {
		return err
	}
	if !out.Applied {
		fmt.Fprintf(w, "the topology has it already, revision %d stays\n", out.Revision)
		return nil
	}
	fmt.Fprintf(w, "applied as revision %d\n", out.Revision)
	return nil
}
