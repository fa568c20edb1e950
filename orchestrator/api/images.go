package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/pxe/importer"
)

const (
	// uploads is how many images may come in at once.
	uploads = 4
	// silence is how long who uploads may send nothing.
	silence = time.Minute
	// ImagePart and FilePart name the parts of an upload: the one, then the files in the manifest's order.
	ImagePart, FilePart = "image", "file"
	maxImagePart        = 256 << 10
)

// ImageView is an image of the store.
type ImageView struct {
	images.Record
	Size   int64              `json:"size" doc:"Bytes of all files"`
	UsedBy []string           `json:"usedBy,omitempty" doc:"Objects of the present topology and boots that name a file of it"`
	Checks []images.PartState `json:"checks,omitempty" doc:"What a check of the files found"`
}

// Removed says what the removal of an image took away.
type Removed struct {
	Files []pxe.Digest `json:"files"`
}

// ImageUpload is the first part of an upload: the manifest, whose digests and sizes may be left out, and who made it.
type ImageUpload struct {
	Manifest  images.Manifest `json:"manifest"`
	Signature string          `json:"signature,omitempty" maxLength:"4096" doc:"Of the complete manifest's text, as minisign writes it"`
	Source    string          `json:"source,omitempty" maxLength:"2048" doc:"Where it comes from, for the record"`
}

func (s *Server) imageRoutes(api huma.API) {
	huma.Register(api, route(http.MethodGet, "/images", "list-images", "All images of the store"),
		func(ctx context.Context, _ *struct{}) (*body[[]ImageView], error) { return reply(s.images(ctx)) })
	huma.Register(api, route(http.MethodGet, "/images/{name}", "show-image", "One image"),
		func(ctx context.Context, in *Named) (*body[ImageView], error) {
			r, err := s.Images.Image(in.Name)
			if err != nil {
				return nil, problem(err)
			}
			return reply(s.imageView(ctx, r))
		})
	huma.Register(api, route(http.MethodPost, "/images/{name}/verify", "verify-image", "Read every file of an image again and compare it with its digest"),
		func(ctx context.Context, in *Named) (*body[ImageView], error) {
			return reply(s.verifyImage(ctx, in.Name))
		})
	huma.Register(api, route(http.MethodDelete, "/images/{name}", "remove-image", "Take an image away, and what files only it needs"),
		func(ctx context.Context, in *struct {
			Actor
			Named
			Old bool `query:"oldRevisions" doc:"Also when only older revisions name it: a rollback to them then has nothing to boot"`
		}) (*body[Removed], error) {
			gone, err := s.removeImage(ctx, in.Name, in.Old)
			if err == nil {
				s.Log.Info("image removed", "image", in.Name, "by", in.name(), "files", len(gone))
			}
			return reply(Removed{gone}, err)
		})
	huma.Register(api, route(http.MethodGet, "/image-garbage", "list-image-garbage", "Files of the image store that nothing names"),
		func(ctx context.Context, _ *struct{}) (*body[[]images.Blob], error) {
			used, err := s.usedDigests(ctx, true)
			if err != nil {
				return nil, problem(err)
			}
			return reply(s.Images.Garbage(func(d pxe.Digest) bool { return len(used[d]) > 0 }))
		})
	api.OpenAPI().AddOperation(&huma.Operation{OperationID: "import-image", Method: http.MethodPut, Path: "/api/v1/images/{name}", Summary: "Import an image, all files or nothing",
		Description: "The body is multipart/form-data: part image is an ImageUpload, then one part file for each file of its manifest, in their order. It may be of any length within the store's limit for one file.",
		Parameters:  []*huma.Param{{Name: "name", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}}},
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"multipart/form-data": {Schema: &huma.Schema{Type: huma.TypeObject,
			Properties: map[string]*huma.Schema{ImagePart: {Type: huma.TypeString, Description: "ImageUpload as JSON"}, FilePart: {Type: huma.TypeString, Format: "binary"}}}}}},
		Responses: map[string]*huma.Response{"200": {Description: "The image as it is kept"}, "default": {Description: "problem+json"}}})
}

// importImage takes an upload in as a stream: nothing of it waits in memory or in a temporary file of the framework.
func (s *Server) importImage(slots chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var rec images.Record
		var err error
		select {
		case slots <- struct{}{}:
			rec, err = s.upload(w, r)
			<-slots
		default:
			err = &fault.Error{Kind: fault.Busy, What: fmt.Sprintf("%d images come in already", uploads), Next: "try again when one is done"}
		}
		var view ImageView
		if err == nil {
			s.Log.Info("image imported", "image", rec.Manifest.Name, "by", rec.By, "source", rec.Source, "bytes", rec.Manifest.Size(), "signedBy", rec.SignedBy)
			view, err = s.imageView(r.Context(), rec)
		}
		w.Header().Set("Content-Type", "application/json")
		var out any = view
		if err != nil {
			var p *huma.ErrorModel
			if !errors.As(problem(err), &p) {
				p = &huma.ErrorModel{Status: http.StatusInternalServerError, Detail: err.Error()}
			}
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(p.Status)
			out = p
		}
		_ = json.NewEncoder(w).Encode(out) // who does not read the answer has gone
	}
}

func (s *Server) upload(w http.ResponseWriter, r *http.Request) (images.Record, error) {
	var in ImageUpload
	parts, err := patient(w, r).MultipartReader()
	if err != nil {
		return images.Record{}, &fault.Error{Kind: fault.Invalid, What: "read upload", Err: err, Next: "send multipart/form-data"}
	}
	first, err := nextPart(parts, ImagePart)
	if err != nil {
		return images.Record{}, err
	}
	d := json.NewDecoder(io.LimitReader(first, maxImagePart))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return images.Record{}, &fault.Error{Kind: fault.Invalid, What: "read part " + ImagePart, Err: err}
	}
	if name := r.PathValue("name"); in.Manifest.Name != name {
		return images.Record{}, &fault.Error{Kind: fault.Invalid, What: "import image " + name, Evidence: fmt.Sprintf("the manifest names %.80q", in.Manifest.Name)}
	}
	if len(in.Source) > 2048 {
		return images.Record{}, &fault.Error{Kind: fault.Invalid, What: "import image " + in.Manifest.Name, Evidence: "source is longer than 2048 bytes"}
	}
	rec := images.Record{Manifest: in.Manifest, Signature: in.Signature, Source: in.Source, By: Actor{By: r.Header.Get("X-Rerack-Actor")}.name(), At: s.Now().UTC()}
	if len(rec.By) > 128 {
		return rec, &fault.Error{Kind: fault.Invalid, What: "X-Rerack-Actor", Evidence: "longer than 128 bytes"}
	}
	rec, err = s.Images.Take(r.Context(), rec, func(i int) (io.Reader, error) {
		p, err := nextPart(parts, FilePart)
		if err != nil {
			return nil, err
		}
		return importer.Checked(in.Manifest.Files[i].Role, p), nil
	})
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return rec, &fault.Error{Kind: fault.Invalid, Where: "image " + in.Manifest.Name, What: "the upload was cut off; nothing of it was kept", Err: err}
	case errors.As(err, &timeout) && timeout.Timeout():
		return rec, &fault.Error{Kind: fault.Timeout, Where: "image " + in.Manifest.Name, What: "the upload stood still; nothing of it was kept", Err: err}
	}
	return rec, err
}

func nextPart(parts *multipart.Reader, name string) (*multipart.Part, error) {
	p, err := parts.NextRawPart()
	if err == nil && p.FormName() != name {
		err = fault.Newf(fault.Invalid, "part %.40q", p.FormName())
	}
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "the upload has no part " + name + " there", Err: err, Next: "send part image, then a part file for each file"}
	}
	return p, nil
}

// patient gives each read of a body its own deadline: an upload may take hours, but not stand still.
func patient(w http.ResponseWriter, r *http.Request) *http.Request {
	r.Body = &patientBody{r.Body, http.NewResponseController(w)}
	return r
}

type patientBody struct {
	io.ReadCloser
	conn *http.ResponseController
}

func (p *patientBody) Read(b []byte) (int, error) {
	if err := p.conn.SetReadDeadline(time.Now().Add(silence)); err != nil {
		return 0, err
	}
	n, err := p.ReadCloser.Read(b)
	if err != nil { // what comes after the body has its own time
		_ = p.conn.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (s *Server) images(ctx context.Context) ([]ImageView, error) {
	all, err := s.Images.Images()
	if err != nil {
		return nil, err
	}
	out := make([]ImageView, len(all))
	for i, r := range all {
		if out[i], err = s.imageView(ctx, r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *Server) imageView(ctx context.Context, r images.Record) (ImageView, error) {
	v := ImageView{Record: r, Size: r.Manifest.Size()}
	used, err := s.usedDigests(ctx, false)
	for _, p := range r.Manifest.Files {
		v.UsedBy = append(v.UsedBy, used[p.Digest]...)
	}
	slices.Sort(v.UsedBy)
	v.UsedBy = slices.Compact(v.UsedBy)
	return v, err
}

func (s *Server) verifyImage(ctx context.Context, name string) (ImageView, error) {
	r, checks, err := s.Images.Check(ctx, name)
	if err != nil {
		return ImageView{}, err
	}
	v, err := s.imageView(ctx, r)
	v.Checks = checks
	return v, err
}
